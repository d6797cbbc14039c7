//! The embedded back end: redb, one file.
