//! Numbers that are not to be mixed up: each kind is a type of its own.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(u64);

        impl $name {
            /// The plain number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u64> for $name {
            fn from(number: u64) -> Self {
                Self(number)
            }
        }
    };
}

number! {
    /// A point in the group's history. An empty group is at 1; every write that changes a key takes the next one.
    ///
    /// ```
    /// # use quorate::Revision;
    /// let read_at = Revision::from(7);
    /// assert_eq!(read_at.next().get(), 8); // where to watch from after a read at 7
    /// ```
    Revision
}
number! {
    /// Names a member of the group for all time; never used again after its removal.
    ///
    /// ```
    /// # use quorate::NodeId;
    /// assert_eq!(NodeId::from(3).to_string(), "3");
    /// ```
    NodeId
}
number! {
    /// Names a lease. The group chooses it.
    ///
    /// ```
    /// # use quorate::LeaseId;
    /// assert!(LeaseId::from(1) < LeaseId::from(2));
    /// ```
    LeaseId
}
number! {
    /// Grows with every new holder of a lock or leadership. Hand it to the resource that you protect, and let the
    /// resource refuse a token smaller than the largest it has seen.
    ///
    /// ```
    /// # use quorate::FencingToken;
    /// let (stale, current) = (FencingToken::from(41), FencingToken::from(44));
    /// assert!(stale < current);
    /// ```
    FencingToken
}

impl Revision {
    /// The revision of an empty group.
    pub(crate) const FIRST: Self = Self(1);

    /// The first revision after this one: where to watch from after a read at `self`.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
