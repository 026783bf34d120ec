//! Who this member is, and who founded the group.
//!
//! Both are written to the log's environment once, and are never asked for again. The *incarnation* is drawn when the
//! data folder is made: a folder that was wiped comes back with another one, so that it can be told from the member
//! whose votes and acknowledgements it does not remember.
//!
//! A founder's id follows from its address, and is at most 1023. Whoever [joined](Joined) later has the number of the log
//! entry that names the members before it, plus 1024 ([`id_after`]). Only one committed entry follows that one with a
//! change of the members, so no id is ever given twice, and nothing has to be counted, kept through a compaction or sent
//! in a snapshot. It also tells who was removed from who is not known here yet ([`is_removed`]).

use super::log::{LogStore, Meta};
use super::{Membership, Peer};
use crate::codec;
use crate::error::{Error, Fault, Reason};
use crate::fault::{Bug, bug};
use crate::types::NodeId;
use serde::{Deserialize, Serialize};

/// The highest id of a founder; whoever joins later gets one above it.
pub(crate) const FOUNDERS_MAX: usize = 1023;

/// The id of the member that the change after the members at log index `membership` takes in.
pub(crate) fn id_after(membership: u64) -> u64 {
    FOUNDERS_MAX as u64 + 1 + membership
}

/// Whether `node` has been a member and is none any more, going by committed `members` and the log index of the entry that
/// says so. That entry may be older than the one that takes `node` in.
pub(crate) fn is_removed(node: u64, members: &Membership, at: u64) -> bool {
    members.get_node(&node).is_none() && node < id_after(at)
}

/// Who this member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) group: u128,
    pub(crate) node: u64,
    pub(crate) incarnation: u64,
}

/// The members that founded the group. All of them hold the same record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Founding {
    pub(crate) group: u128,
    pub(crate) name: String,
    pub(crate) founders: Vec<Founder>,
    /// The state that its log begins with, if that was restored.
    pub(crate) base: Option<Base>,
}

/// A state that no log leads to: one that was restored from a backup, and in which no group has written yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    pub(crate) revision: u64,
    pub(crate) hash: u128,
}

impl std::fmt::Display for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a state restored at revision {} (hash {:032x})", self.revision, self.hash)
    }
}

/// As whom a folder that founded nothing is in the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    pub(crate) node: u64,
    /// Under which the others know it.
    pub(crate) address: String,
    pub(crate) founding: Founding,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Founder {
    pub(crate) address: String,
    pub(crate) incarnation: u64,
}

impl Founding {
    /// Makes the record of a new group. The founders' ids follow from the order of their addresses.
    pub(crate) fn new(name: &str, mut founders: Vec<Founder>, base: Option<Base>) -> Self {
        founders.sort_by(|a, b| a.address.cmp(&b.address));
        Self { group: random_u128(), name: name.to_owned(), founders, base }
    }

    /// The members as the group's first membership names them.
    pub(crate) fn members(&self) -> impl Iterator<Item = (u64, Peer)> {
        (1..).zip(&self.founders).map(|(id, founder)| {
            (id, Peer { address: founder.address.clone(), incarnation: founder.incarnation })
        })
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = &str> {
        self.founders.iter().map(|founder| founder.address.as_str())
    }

    /// Who `address` is in the group, if its folder is still the one that founded it.
    pub(crate) fn identity(&self, address: &str, incarnation: u64) -> Result<Identity, Error> {
        let mut members = self.members();
        let owner = members.find(|(_, peer)| peer.incarnation == incarnation);
        let mut members = self.members();
        let Some((node, _)) = members.find(|(_, peer)| peer.address == address) else {
            let known = self.addresses().collect::<Vec<_>>().join(", ");
            let detail = format!("{address} is not among the founders of the group: {known}");
            return Err(Reason::FoundersDiffer { detail }.into());
        };
        match owner {
            Some((owner, _)) if owner == node => {
                Ok(Identity { group: self.group, node, incarnation })
            }
            None if bug(Bug::WipedFounderVotes) => {
                let peer = self.members().find(|(member, _)| *member == node);
                let incarnation = peer.map_or(incarnation, |(_, peer)| peer.incarnation);
                Ok(Identity { group: self.group, node, incarnation })
            }
            // Nothing was lost: the folders of two members were mixed up.
            Some((owner, _)) => {
                let (actual, expected) = (NodeId::from(owner), NodeId::from(node));
                Err(Reason::NodeMismatch { actual, expected }.into())
            }
            None => Err(Reason::IncarnationRefused { node: NodeId::from(node) }.into()),
        }
    }

    /// Refuses another list of founders than the one that founded the group.
    pub(crate) fn check(&self, name: &str, addresses: &[String]) -> Result<(), Error> {
        if !self.addresses().eq(addresses.iter().map(String::as_str)) {
            let known = self.addresses().collect::<Vec<_>>().join(", ");
            let given = addresses.join(", ");
            // A group of one has no addresses.
            let detail = if known.is_empty() {
                format!("this is a group of one, which was started with solo(), not with {given}")
            } else if given.is_empty() {
                format!("the group was founded by {known}: start it with form(), and not alone")
            } else {
                format!(
                    "the group was founded by {known}, not by {given}: pass the same addresses on every start"
                )
            };
            return Err(Reason::FoundersDiffer { detail }.into());
        }
        if self.name != name {
            let detail = format!("the group is named {:?}, not {name:?}", self.name);
            return Err(Reason::FoundersDiffer { detail }.into());
        }
        Ok(())
    }
}

/// What the data folder says about itself.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    pub(crate) incarnation: u64,
    /// Of whoever founded the group, or has joined it.
    pub(crate) founding: Option<Founding>,
    /// Only of who has joined: the id, and the address.
    pub(crate) joined: Option<(u64, String)>,
}

impl Records {
    /// Reads the records; a new folder draws its incarnation.
    pub(crate) async fn open(log: &LogStore) -> Result<Self, Fault> {
        let incarnation = match read::<u64>(log, Meta::Identity)? {
            Some(incarnation) => incarnation,
            None => {
                // Zero stands for "unknown" in a hello.
                let drawn = random_u64().max(1);
                log.write_meta(Meta::Identity, codec::encode(&drawn).into()).await?;
                drawn
            }
        };
        let mut records = Self { incarnation, founding: read(log, Meta::Founding)?, joined: None };
        if let Some(joined) = read(log, Meta::Joined)? {
            records.remember(joined);
        }
        Ok(records)
    }

    fn remember(&mut self, Joined { node, address, founding }: Joined) {
        self.founding = Some(founding);
        self.joined = Some((node, address));
    }

    /// Keeps as whom this folder was let into the group, for ever, before it takes part.
    pub(crate) async fn join(&mut self, log: &LogStore, joined: Joined) -> Result<(), Fault> {
        assert!(self.founding.is_none(), "a folder is of one group");
        log.write_meta(Meta::Joined, codec::encode(&joined).into()).await?;
        self.remember(joined);
        Ok(())
    }

    /// Refuses another state than the one that the log of the group begins with. Only for a state in which nothing of the log
    /// was applied: all others are in the log, or have been.
    pub(crate) fn check_base(&self, base: Option<Base>) -> Result<(), Fault> {
        // Who joins begins with nothing, and is given that state.
        let expected = |founding: &Founding| founding.base.filter(|_| self.joined.is_none());
        let Some(founding) = self.founding.as_ref().filter(|it| expected(it) != base) else {
            return Ok(());
        };
        let show =
            |base: Option<Base>| base.map_or_else(|| "nothing".to_owned(), |it| it.to_string());
        let (was, is) = (show(expected(founding)), show(base));
        Err(Fault::corrupt(format!("this member began with {was}, and the folder has {is}")))
    }

    /// Keeps the founding record, for ever, before anybody is told of it.
    pub(crate) async fn found(&mut self, log: &LogStore, founding: Founding) -> Result<(), Fault> {
        assert!(self.founding.is_none(), "a folder founds one group");
        log.write_meta(Meta::Founding, codec::encode(&founding).into()).await?;
        self.founding = Some(founding);
        Ok(())
    }
}

fn read<T: serde::de::DeserializeOwned>(log: &LogStore, name: Meta) -> Result<Option<T>, Fault> {
    let Some(bytes) = log.read_meta(name) else { return Ok(None) };
    let unreadable = |_| Fault::format(format!("this version cannot read the record {name:?}"));
    codec::decode(&bytes).map(Some).map_err(unreadable)
}

fn random_u64() -> u64 {
    getrandom::u64().expect("the system has randomness")
}

fn random_u128() -> u128 {
    u128::from(random_u64()) << 64 | u128::from(random_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founder(address: &str, incarnation: u64) -> Founder {
        Founder { address: address.into(), incarnation }
    }

    #[test]
    fn ids_follow_from_the_sorted_addresses() {
        let founding = Founding::new("", vec![founder("b:1", 20), founder("a:1", 10)], None);
        assert_eq!(founding.identity("a:1", 10).unwrap().node, 1);
        assert_eq!(founding.identity("b:1", 20).unwrap().node, 2);
    }

    #[test]
    fn a_wiped_folder_is_not_the_member_that_it_was() {
        let founding = Founding::new("", vec![founder("a:1", 10)], None);
        let error = founding.identity("a:1", 11).unwrap_err();
        assert_eq!(*error.reason(), Reason::IncarnationRefused { node: NodeId::from(1) });
    }

    #[test]
    fn folders_that_were_mixed_up_are_told_from_folders_that_were_wiped() {
        let founding = Founding::new("", vec![founder("a:1", 10), founder("b:1", 20)], None);
        let error = founding.identity("a:1", 20).unwrap_err();
        let (actual, expected) = (NodeId::from(2), NodeId::from(1));
        assert_eq!(*error.reason(), Reason::NodeMismatch { actual, expected });
    }

    #[test]
    fn another_list_or_name_is_refused() {
        let founding = Founding::new("x", vec![founder("a:1", 10), founder("b:1", 20)], None);
        let list =
            |addresses: &[&str]| addresses.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
        founding.check("x", &list(&["a:1", "b:1"])).unwrap();
        assert!(founding.check("x", &list(&["a:1"])).is_err());
        assert!(founding.check("x", &list(&["a:1", "c:1"])).is_err());
        assert!(founding.check("y", &list(&["a:1", "b:1"])).is_err());
        assert!(founding.identity("c:1", 10).is_err());
    }

    #[tokio::test]
    async fn the_records_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = LogStore::open(folder.path(), 16 << 20).unwrap();
        let mut records = Records::open(&log).await.unwrap();
        let founding = Founding::new("x", vec![founder("a:1", records.incarnation)], None);
        records.found(&log, founding.clone()).await.unwrap();
        let again = Records::open(&log).await.unwrap();
        assert_eq!(again.incarnation, records.incarnation);
        assert_eq!(again.founding, Some(founding));
    }

    #[tokio::test]
    async fn whoever_has_joined_stays_who_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let log = LogStore::open(folder.path(), 16 << 20).unwrap();
        let mut records = Records::open(&log).await.unwrap();
        let base = Some(Base { revision: 7, hash: 1 });
        let founding = Founding::new("x", vec![founder("a:1", 10)], base);
        let joined = Joined { node: 1030, address: "d:1".into(), founding: founding.clone() };
        records.join(&log, joined).await.unwrap();
        let again = Records::open(&log).await.unwrap();
        assert_eq!(again.incarnation, records.incarnation);
        assert_eq!(
            (again.founding.as_ref(), again.joined.as_ref()),
            (Some(&founding), Some(&(1030, "d:1".into())))
        );
        again.check_base(None).unwrap();
        assert!(again.check_base(base).is_err(), "it begins with nothing");
    }

    #[test]
    fn who_was_removed_is_told_from_who_is_not_known_yet() {
        let peer = || Peer { address: "a:1".into(), incarnation: 1 };
        let members = |ids: &[u64]| {
            let nodes: std::collections::BTreeMap<u64, Peer> =
                ids.iter().map(|id| (*id, peer())).collect();
            Membership::new(vec![[ids[0]].into()], nodes).unwrap()
        };
        // The entry at index 40 names 1 and 2; the next, at 50, takes somebody in.
        let new = id_after(40);
        assert!(!is_removed(new, &members(&[1, 2]), 40), "not known yet");
        assert!(!is_removed(new, &members(&[1, 2, new]), 50));
        assert!(is_removed(new, &members(&[1, 2]), 60));
        assert!(is_removed(2, &members(&[1, new]), 60));
        assert!(!is_removed(id_after(60), &members(&[1]), 60));
    }

    #[tokio::test]
    async fn a_group_that_was_founded_on_another_state_is_not_this_one() {
        let folder = tempfile::tempdir().unwrap();
        let log = LogStore::open(folder.path(), 16 << 20).unwrap();
        let mut records = Records::open(&log).await.unwrap();
        let base = Some(Base { revision: 7, hash: 1 });
        records.check_base(base).unwrap();
        let founders = vec![founder("a:1", records.incarnation)];
        records.found(&log, Founding::new("x", founders, base)).await.unwrap();
        let records = Records::open(&log).await.unwrap();
        records.check_base(base).unwrap();
        assert!(records.check_base(None).is_err(), "the state was lost");
        assert!(records.check_base(Some(Base { revision: 7, hash: 2 })).is_err());
    }
}
