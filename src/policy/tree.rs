//! The tree of all patterns, segment by segment.

use http::Method;

use super::path::decode;
use super::pattern::Segment;
use super::reading::Reading;
use super::rule::Route;

/// The routes of one pattern.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Each method with the number of the route that takes it. Empty where no rule has the pattern.
    pub(super) by_method: Vec<(Method, usize)>,
    /// Whether a rule denies the methods that are not among them.
    pub(super) denies: bool,
    /// Whether the search ends here for a method that is not among them. It does where a rule denies other methods,
    /// and where no wider pattern could take one: a search that finds nothing is not made.
    pub(super) ends_search: bool,
}

impl Claims {
    /// Adds a route with this number. A method that another route has stays with that one.
    pub(super) fn add(&mut self, route: &Route, number: usize) {
        self.denies |= route.denies_other_methods;
        self.ends_search |= self.denies;
        for method in &route.methods {
            if self.named(method).is_none() {
                self.by_method.push((method.clone(), number));
            }
        }
    }

    /// The route that names this method.
    pub(super) fn named(&self, method: &Method) -> Option<usize> {
        self.by_method.iter().find(|(named, _)| named == method).map(|(_, route)| *route)
    }

    /// The route that takes this method, as in [`Route::takes`].
    pub(super) fn taker(&self, method: &Method) -> Option<usize> {
        self.named(method).or_else(|| if *method == Method::HEAD { self.named(&Method::GET) } else { None })
    }

    /// The result of a search that came here; `None` where it goes on.
    fn result(&self, method: &Method) -> Option<Found> {
        match self.taker(method) {
            Some(route) => Some(Found::Route(route)),
            None if self.denies => Some(Found::Denied),
            None if self.ends_search => Some(Found::Nothing),
            None => None,
        }
    }
}

/// The result of a search that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The number of a route.
    Route(usize),
    /// No route: a rule has the path and denies the method, and wider patterns do not count.
    Denied,
    /// No route, and no wider pattern could have one.
    Nothing,
    /// Several results: literals that this reading does not tell apart lead to different ones.
    Torn,
}

/// The properties that are searched for, apart from the path.
#[derive(Clone, Copy)]
pub(super) struct Search<'s> {
    pub(super) method: &'s Method,
    pub(super) reading: Reading<'s>,
    pub(super) end: End,
}

/// Which path is meant: the given one, or the same with a slash at its end.
#[derive(Clone, Copy)]
pub(super) enum End {
    Here,
    Beneath,
}

/// The patterns that begin with the same segments.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Sorted by their canonical texts.
    literals: Vec<Literal>,
    param: Option<Box<Self>>,
    /// The claims on the pattern that ends here.
    here: Claims,
    /// The claims on everything beneath.
    rest: Claims,
}

#[derive(Debug)]
struct Literal {
    text: Box<str>,
    /// The text as a server sees it that decodes segments.
    octets: Box<[u8]>,
    /// Whether another literal beside it differs only in letters' case or in its encoding.
    has_twin: bool,
    node: Node,
}

impl Literal {
    fn is_similar(&self, octets: &[u8]) -> bool {
        self.octets.eq_ignore_ascii_case(octets)
    }
}

impl Node {
    /// The claims on a pattern. Makes the nodes that lead to them.
    pub(super) fn claims(&mut self, segments: &[Segment]) -> &mut Claims {
        match segments.split_first() {
            None => &mut self.here,
            Some((Segment::Rest, _)) => &mut self.rest,
            Some((Segment::Param, further)) => self.param.get_or_insert_default().claims(further),
            Some((Segment::Literal(text), further)) => {
                let at = match self.literals.binary_search_by(|literal| literal.text.cmp(text)) {
                    Ok(at) => at,
                    Err(at) => {
                        self.insert(at, text);
                        at
                    }
                };
                self.literals[at].node.claims(further)
            }
        }
    }

    fn insert(&mut self, at: usize, text: &str) {
        let octets: Box<[u8]> = decode(text).into();
        let mut has_twin = false;
        for twin in self.literals.iter_mut().filter(|literal| literal.is_similar(&octets)) {
            twin.has_twin = true;
            has_twin = true;
        }
        self.literals.insert(at, Literal { text: text.into(), octets, has_twin, node: Self::default() });
    }

    /// Searches for the most specific pattern that matches a path and has a route for the method; `None` where there is
    /// none. The path is given without its first slash; `None` is the root. To be called on the root of the tree.
    pub(super) fn find_from_root(&self, path: Option<&str>, search: Search<'_>) -> Option<Found> {
        match path {
            Some(_) => self.find(path, search),
            // The root ends with a slash already, so whatever lies beneath it begins there.
            None => self.here.result(search.method).or_else(|| self.beneath(search.method)),
        }
    }

    /// As [`Node::find_from_root`], for the rest of a path. Each node is visited at most once, so the policy's size
    /// bounds the cost, whatever the path.
    fn find(&self, path: Option<&str>, search: Search<'_>) -> Option<Found> {
        let Some(path) = path else {
            return match search.end {
                End::Here => self.here.result(search.method),
                End::Beneath => self.beneath(search.method),
            };
        };
        let (segment, further) = match path.split_once('/') {
            Some((segment, further)) => (segment, Some(further)),
            None => (path, None),
        };
        self.find_by_literal(segment, further, search)
            .or_else(|| {
                // An empty last segment is a slash at the end, and no value for a parameter.
                let node = self.param.as_ref().filter(|_| !segment.is_empty())?;
                node.find(further, search)
            })
            .or_else(|| match search.end {
                End::Here => self.rest.result(search.method),
                End::Beneath => None,
            })
    }

    /// The result for this node's path with a slash behind it.
    fn beneath(&self, method: &Method) -> Option<Found> {
        let slashed = self.literals.first().filter(|literal| literal.text.is_empty());
        slashed.and_then(|literal| literal.node.here.result(method)).or_else(|| self.rest.result(method))
    }

    fn find_by_literal(&self, segment: &str, further: Option<&str>, search: Search<'_>) -> Option<Found> {
        let at = self.literals.binary_search_by(|literal| (*literal.text).cmp(segment));
        let octets = match (search.reading, at) {
            (Reading::Canonical { near_miss }, Ok(at)) => {
                let literal = &self.literals[at];
                near_miss.set(near_miss.get() || literal.has_twin);
                return literal.node.find(further, search);
            }
            (Reading::Canonical { near_miss }, Err(_)) => {
                let similar = |literal: &Literal| literal.is_similar(segment.as_bytes());
                near_miss.set(near_miss.get() || self.literals.iter().any(similar));
                return None;
            }
            (Reading::Decoded | Reading::Lax, _) => search.reading.of(segment),
        };
        // A policy that has literals which differ only in their spelling means each of them as it is written.
        let exact = at.ok();
        exact.and_then(|at| self.literals[at].node.find(further, search)).or_else(|| {
            let same = |literal: &Literal| match search.reading {
                Reading::Lax => literal.is_similar(&octets),
                Reading::Canonical { .. } | Reading::Decoded => *literal.octets == *octets,
            };
            let others = self.literals.iter().enumerate().filter(|(at, _)| Some(*at) != exact);
            let results = others.filter(|(_, literal)| same(literal));
            let results = results.filter_map(|(_, literal)| literal.node.find(further, search));
            results.reduce(|one, other| if one == other { one } else { Found::Torn })
        })
    }
}
