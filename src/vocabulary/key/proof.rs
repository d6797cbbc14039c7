//! Proofs: the seals of what a store keeps beside its records and keygate acts upon.
//!
//! A proof is an HMAC-SHA-256 (RFC 2104) under the pepper over what it proves, with its kind and its place. So whoever can
//! write to a store and has no pepper can make none, and one that was moved to another place proves nothing there.
//! A store without a pepper has no proofs.

use hmac::Mac;

use super::Pepper;
use super::record::{Seal, Sealer};

/// What a proof is about: it keeps the uses apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofOf {
    /// News of an organisation: its id (16 bytes), the revision of its record, the body.
    News,
    /// An event: its mark (32 digits), its subjects.
    Event,
    /// An operator has accepted a store: the moment (8 bytes), the cell.
    Acceptance,
    /// The file with what a gateway remembers: all of it.
    MemoryFile,
    /// A backup: the SHA-256 of all of it.
    Backup,
    /// A key that is gone, or one of its secrets: its name (16 or 32 bytes), the key that made it.
    Gone,
}

impl ProofOf {
    const fn purpose(self) -> &'static str {
        match self {
            Self::News => "keygate proof news\0",
            Self::Event => "keygate proof event\0",
            Self::Acceptance => "keygate proof acceptance\0",
            Self::MemoryFile => "keygate proof memory file\0",
            Self::Backup => "keygate proof backup\0",
            Self::Gone => "keygate proof gone\0",
        }
    }
}

impl Sealer {
    /// The proof of these parts, of which all but the last have a fixed length; nothing without a pepper.
    #[must_use]
    pub fn prove(&self, of: ProofOf, parts: &[&[u8]]) -> Option<Vec<u8>> {
        let (current, _) = self.peppers().sealing();
        Some(mac(&current?, of, parts).finalize().into_bytes().to_vec())
    }

    /// Whether these parts are proven, and under which pepper; `None` if they are not. Without a pepper everything is.
    #[must_use]
    pub fn check_proof(&self, of: ProofOf, parts: &[&[u8]], proof: &[u8]) -> Option<Seal> {
        let (current, before) = self.peppers().sealing();
        let Some(current) = current else { return Some(Seal::Current) };
        let fits = |pepper: &Pepper| mac(pepper, of, parts).verify_slice(proof).is_ok();
        if fits(&current) {
            return Some(Seal::Current);
        }
        before.filter(fits).map(|_| Seal::Before)
    }

    /// A proof that is to be made; nothing without a pepper.
    #[must_use]
    pub fn prove_in_parts(&self, of: ProofOf) -> Option<ProofInParts> {
        let (current, _) = self.peppers().sealing();
        Some(ProofInParts(vec![mac(&current?, of, &[])]))
    }

    /// A proof that is to be checked, under any pepper that the store has had: for what stands where only keygate's machine can
    /// write.
    #[must_use]
    pub fn check_in_parts(&self, of: ProofOf) -> ProofInParts {
        ProofInParts(self.peppers().all().iter().map(|pepper| mac(pepper, of, &[])).collect())
    }
}

/// A proof of what is not in memory as a whole: its parts come one after another.
#[derive(Debug)]
pub struct ProofInParts(Vec<hmac::Hmac<sha2::Sha256>>);

impl ProofInParts {
    pub fn update(&mut self, part: &[u8]) {
        self.0.iter_mut().for_each(|mac| mac.update(part));
    }

    /// The proof under the pepper in force.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0.into_iter().next().map(|mac| mac.finalize().into_bytes().to_vec()).unwrap_or_default()
    }

    /// Whether it is this one, under any of the peppers.
    #[must_use]
    pub fn fits(self, proof: &[u8]) -> bool {
        self.0.into_iter().any(|mac| mac.verify_slice(proof).is_ok())
    }
}

pub(super) fn mac(pepper: &Pepper, of: ProofOf, parts: &[&[u8]]) -> hmac::Hmac<sha2::Sha256> {
    let mut mac = pepper.hmac(of.purpose());
    parts.iter().for_each(|part| mac.update(part));
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_fits_its_parts_and_its_pepper_only() {
        let under = |byte| Sealer::new(Some(Pepper::new(vec![byte; 32]).unwrap()));
        let parts: [&[u8]; 2] = [&[1; 16], b"body"];
        let proof = under(1).prove(ProofOf::News, &parts).unwrap();
        let judged =
            |sealer: Sealer, parts: &[&[u8]], proof: &[u8]| sealer.check_proof(ProofOf::News, parts, proof);
        assert_eq!(judged(under(1), &parts, &proof), Some(Seal::Current));
        assert_eq!(judged(under(2), &parts, &proof), None);
        assert_eq!(judged(under(1), &[&[1; 16], b"bodies"], &proof), None);
        assert_eq!(judged(under(1), &[&[2; 16], b"body"], &proof), None);
        for bad in [&proof[1..], &[], &[0; 32]] {
            assert_eq!(judged(under(1), &parts, bad), None);
        }
        let in_parts = |proof: ProofInParts| {
            let mut proof = proof;
            parts.iter().for_each(|part| proof.update(part));
            proof
        };
        assert_eq!(in_parts(under(1).prove_in_parts(ProofOf::News).unwrap()).finish(), proof);
        assert!(in_parts(under(1).check_in_parts(ProofOf::News)).fits(&proof));
        assert!(!in_parts(under(2).check_in_parts(ProofOf::News)).fits(&proof));
        assert!(!in_parts(under(1).check_in_parts(ProofOf::Event)).fits(&proof));
        let plain = Sealer::new(None);
        assert_eq!(plain.prove(ProofOf::News, &parts), None);
        assert!(plain.prove_in_parts(ProofOf::News).is_none());
        assert_eq!(judged(plain, &parts, &[]), Some(Seal::Current), "there is nothing that could prove it");
    }
}
