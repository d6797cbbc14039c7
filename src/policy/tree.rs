//! The tree of all patterns, segment by segment.

use http::Method;

use super::path::decode;
use super::pattern::Segment;
use super::reading::Reading;

/// A method and the number of the route that takes it.
pub(super) type Claim = (Method, usize);

/// The patterns that begin with the same segments.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Sorted by their canonical texts.
    literals: Vec<Literal>,
    param: Option<Box<Self>>,
    /// The claims on the pattern that ends here.
    here: Vec<Claim>,
    /// The claims on everything beneath.
    rest: Vec<Claim>,
}

#[derive(Debug)]
struct Literal {
    text: Box<str>,
    /// The text as a server sees it that decodes segments.
    octets: Box<[u8]>,
    node: Node,
}

/// Which path is meant: the given one, or the same with a slash at its end.
#[derive(Clone, Copy)]
pub(super) enum End {
    Here,
    Beneath,
}

impl Node {
    /// The claims on a pattern. Makes the nodes that lead to them.
    pub(super) fn claims(&mut self, segments: &[Segment]) -> &mut Vec<Claim> {
        match segments.split_first() {
            None => &mut self.here,
            Some((Segment::Rest, _)) => &mut self.rest,
            Some((Segment::Param, further)) => self.param.get_or_insert_default().claims(further),
            Some((Segment::Literal(text), further)) => {
                let at = match self.literals.binary_search_by(|literal| literal.text.cmp(text)) {
                    Ok(at) => at,
                    Err(at) => {
                        let octets = decode(text).into();
                        self.literals
                            .insert(at, Literal { text: text.clone(), octets, node: Self::default() });
                        at
                    }
                };
                self.literals[at].node.claims(further)
            }
        }
    }

    /// The claims on the most specific pattern that matches a path, given without its first slash; `None` is the
    /// root. To be called on the root of the tree.
    pub(super) fn find_from_root(
        &self,
        path: Option<&str>,
        reading: Reading<'_>,
        end: End,
    ) -> Option<&[Claim]> {
        match path {
            Some(_) => self.find(path, reading, end),
            // The root ends with a slash already, so whatever lies beneath it begins there.
            None => non_empty(&self.here).or_else(|| self.beneath()),
        }
    }

    /// The claims on the most specific pattern that matches. Each node is visited at most once, so the policy's
    /// size bounds the cost, whatever the path.
    fn find(&self, path: Option<&str>, reading: Reading<'_>, end: End) -> Option<&[Claim]> {
        let Some(path) = path else {
            return match end {
                End::Here => non_empty(&self.here),
                End::Beneath => self.beneath(),
            };
        };
        let (segment, further) = match path.split_once('/') {
            Some((segment, further)) => (segment, Some(further)),
            None => (path, None),
        };
        self.literal(segment, reading)
            .and_then(|node| node.find(further, reading, end))
            .or_else(|| {
                // An empty last segment is a slash at the end, and no value for a parameter.
                let node = self.param.as_ref().filter(|_| !segment.is_empty())?;
                node.find(further, reading, end)
            })
            .or_else(|| match end {
                End::Here => non_empty(&self.rest),
                End::Beneath => None,
            })
    }

    /// The claims on this node's path with a slash behind it.
    fn beneath(&self) -> Option<&[Claim]> {
        let slashed = self.literals.first().filter(|literal| literal.text.is_empty());
        slashed.and_then(|literal| non_empty(&literal.node.here)).or_else(|| non_empty(&self.rest))
    }

    fn literal(&self, segment: &str, reading: Reading<'_>) -> Option<&Self> {
        let octets = reading.of(segment);
        let equal = |literal: &&Literal| *literal.octets == *octets;
        let similar = |literal: &&Literal| literal.octets.eq_ignore_ascii_case(&octets);
        let found = match reading {
            Reading::Canonical { near_miss } => {
                match self.literals.binary_search_by(|literal| (*literal.text).cmp(segment)) {
                    Ok(at) => Some(&self.literals[at]),
                    Err(_) => {
                        near_miss
                            .set(near_miss.get() || self.literals.iter().any(|literal| similar(&literal)));
                        None
                    }
                }
            }
            Reading::Decoded => self.literals.iter().find(equal),
            Reading::Lax => self.literals.iter().find(equal).or_else(|| self.literals.iter().find(similar)),
        };
        found.map(|literal| &literal.node)
    }
}

const fn non_empty(claims: &Vec<Claim>) -> Option<&[Claim]> {
    if claims.is_empty() { None } else { Some(claims.as_slice()) }
}
