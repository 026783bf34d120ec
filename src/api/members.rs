//! What is said about who is in the group: by a node that wants to be let in, and by an operator who decides who votes.

use crate::error::Reason;
use crate::types::NodeId;
use std::net::IpAddr;
use std::time::Duration;

/// What a node says that wants to be let in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Join {
    /// Where the others are to reach it.
    pub(crate) address: String,
    /// That of its folder, by which it gets the same id however often it asks.
    pub(crate) incarnation: u64,
    /// The name of the group; empty if it takes the one that it finds.
    pub(crate) name: String,
    /// Its timing, which has to be that of the group.
    pub(crate) heartbeat: Duration,
}

/// A change of who votes. Each of them may be asked for twice, and happens once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Make a learner a voter.
    Promote(NodeId),
    /// Have a voter or learner go.
    Remove(NodeId),
    /// Both at once; without a name it is the only learner that comes.
    Replace { old: NodeId, new: Option<NodeId> },
}

/// What a node that joins says becomes a record that all members keep.
pub(super) fn check_join(join: &Join) -> Result<(), Reason> {
    let bad = |detail: &str| Err(Reason::BadMembers { detail: detail.to_owned() });
    if join.address.len() > ADDRESS_BYTES_MAX || join.name.len() > ADDRESS_BYTES_MAX {
        return bad("the address of a member, or the name of its group, is too long");
    }
    if join.incarnation == 0 {
        return bad("a node that joins says which folder it has");
    }
    check_address(&join.address)
}

/// No host's name is longer than 253 bytes.
const ADDRESS_BYTES_MAX: usize = 300;

/// An address that others call is `host:port`. One to listen at may leave open which of them it is.
pub(crate) fn check_address(address: &str) -> Result<(), Reason> {
    let bad = |why: &str| Reason::BadAddress { detail: format!("{address:?} is {why}") };
    let parts = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let parts = parts.and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let (host, port) = parts.ok_or_else(|| bad("not host:port"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if port == 0 || host.parse::<IpAddr>().is_ok_and(|host| host.is_unspecified()) {
        return Err(bad(
            "where to listen, and nobody can call it: advertise() says how others call a node",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_that_joins_has_bounds() {
        let join = |address: &str, incarnation: u64| {
            let (name, heartbeat) = (String::new(), Duration::from_millis(200));
            check_join(&Join { address: address.to_owned(), incarnation, name, heartbeat })
        };
        assert_eq!(join("d:1", 7), Ok(()));
        assert!(matches!(join("d:1", 0), Err(Reason::BadMembers { .. })));
        assert!(matches!(join("d", 7), Err(Reason::BadAddress { .. })));
        assert!(matches!(join(":1", 7), Err(Reason::BadAddress { .. })));
        for nowhere in ["d:0", "0.0.0.0:1", "[::]:1", "[::0]:1"] {
            let Err(Reason::BadAddress { detail }) = join(nowhere, 7) else { panic!("{nowhere}") };
            assert!(detail.contains(nowhere) && detail.contains("advertise()"), "{detail}");
        }
        for somewhere in ["10.0.0.0:1", "[::1]:1", "[2001:db8::]:65535", "0.example:1"] {
            assert_eq!(join(somewhere, 7), Ok(()), "{somewhere}");
        }
        let long = format!("{}:1", "d".repeat(ADDRESS_BYTES_MAX));
        assert!(matches!(join(&long, 7), Err(Reason::BadMembers { .. })));
    }
}
