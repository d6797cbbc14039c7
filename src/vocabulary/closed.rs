//! Closed lists of words, for what clients, records and metrics read.

/// An enum whose variants each have a word.
macro_rules! closed {
    ($(#[$about:meta])* $list:ident: $($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $list {
            $($(#[$doc])* $name,)*
        }

        impl $list {
            pub const ALL: [Self; [$($word),*].len()] = [$(Self::$name),*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),* }
            }
        }
    };
}

pub(super) use closed;
