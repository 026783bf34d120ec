//! How a group comes to be, once.
//!
//! Every founder asks all the others the same question until the group stands. There is one message, so a repeated, late
//! or lost one changes nothing.
//!
//! ```text
//! ask { my address, my list, my base } ─▶ Empty { incarnation, base } │ Founded { record } │ refused: we differ
//!
//! the founder with the lowest address: all others are empty ─▶ make the record, write it, show it
//! every other:                         somebody shows it, and it names me ─▶ write the same, show it
//! the first again:                     all show the same record ─▶ the group stands: initialize Raft
//! ```
//!
//! Invariants
//! - nobody votes or campaigns before every founder has the record on its disk: only then is Raft initialised;
//! - who holds a record never founds again;
//! - two founders with different lists both end, whichever asks first, and so do two that would begin with different states:
//!   with none, or with what was restored from a backup. The log of the new group does not lead there, so a group whose members
//!   differ in that would never agree;
//! - a folder that the record names with another incarnation was replaced, and is refused: it can neither found a second
//!   group nor vote under its old id. While its peers are down it waits, for it cannot know;
//! - a founder that is not heard of within the time allowed is named in the error.

use super::Peer;
use super::identity::{Base, FOUNDERS_MAX, Founder, Founding, Identity, Records};
use super::log::LogStore;
use crate::api::{Call, Request, Response, check_address};
use crate::codec;
use crate::error::{Error, ErrorKind, Fault, Reason};
use crate::wire::RpcClient;
use bytes::Bytes;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How often a founder asks the others.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long it waits for one answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// The question.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    pub(super) own: String,
    pub(super) name: String,
    pub(super) addresses: Vec<String>,
    pub(super) base: Option<Base>,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Empty { name: String, addresses: Vec<String>, incarnation: u64, base: Option<Base> },
    Founded(Founding),
}

/// The founders as the application lists them, checked.
#[derive(Clone, Debug)]
pub(crate) struct Founders {
    pub(crate) name: String,
    /// Sorted.
    pub(crate) addresses: Vec<String>,
    pub(crate) own: String,
    /// The state that this founder begins with, if that was restored.
    pub(crate) base: Option<Base>,
}

impl Founders {
    /// Checks a list: each address once, and the own among them.
    pub(crate) fn new(name: &str, mut addresses: Vec<String>, own: &str) -> Result<Self, Error> {
        let bad = |detail: String| Err(Reason::BadMembers { detail }.into());
        addresses.sort();
        if let Some(twice) = addresses.windows(2).find(|pair| pair[0] == pair[1]) {
            return bad(format!("{} is listed twice", twice[0]));
        }
        if addresses.len() > FOUNDERS_MAX {
            return bad(format!("{} founders are more than {FOUNDERS_MAX}", addresses.len()));
        }
        if !addresses.iter().any(|address| address == own) {
            let list = addresses.join(", ");
            return bad(format!("this node's own address {own} is not among the members {list}"));
        }
        for address in &addresses {
            check_address(address)?;
        }
        Ok(Self { name: name.to_owned(), addresses, own: own.to_owned(), base: None })
    }

    /// A group of one has no address of its own.
    pub(crate) fn alone(name: &str) -> Self {
        let addresses = vec![String::new()];
        Self { name: name.to_owned(), addresses, own: String::new(), base: None }
    }

    /// Those of a group that stands already, as one of its members has them on record.
    pub(crate) fn of(founding: &Founding, own: String) -> Self {
        let addresses = founding.addresses().map(str::to_owned).collect();
        Self { name: founding.name.clone(), addresses, own, base: None }
    }

    /// The same, beginning with a state.
    pub(crate) fn on(self, base: Option<Base>) -> Self {
        Self { base, ..self }
    }

    fn others(&self) -> impl Iterator<Item = &String> {
        self.addresses.iter().filter(|address| **address != self.own)
    }

    fn is_first(&self) -> bool {
        self.addresses.first() == Some(&self.own)
    }

    /// Refuses a founder that has another list: two lists would found two groups.
    fn check(&self, whose: &str, name: &str, addresses: &[String]) -> Result<(), Error> {
        if addresses == self.addresses && name == self.name {
            return Ok(());
        }
        // It is read on both sides, so it says "this node" of neither.
        let detail = format!(
            "{whose} would found {name:?} with {}, and {} {:?} with {}",
            addresses.join(", "),
            self.own,
            self.name,
            self.addresses.join(", ")
        );
        Err(Reason::FoundersDiffer { detail }.into())
    }

    /// Refuses a founder that begins with another state.
    fn check_base(&self, whose: &str, base: Option<Base>) -> Result<(), Error> {
        if base == self.base {
            return Ok(());
        }
        let empty = || "an empty state".to_owned();
        let show = |base: Option<Base>| base.map_or_else(empty, |it| it.to_string());
        let detail = format!(
            "{whose} begins with {}, and {} with {}: restore one backup, with one bump, into the \
             folders of all founders, or none into any",
            show(base),
            self.own,
            show(self.base)
        );
        Err(Reason::FoundersDiffer { detail }.into())
    }
}

/// What this folder knows, shared with whoever answers the others.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    founders: Founders,
    records: Arc<Mutex<Records>>,
    /// Another founder has asked with another list, and will not be there any more when it is asked.
    conflict: Arc<OnceLock<Error>>,
}

impl Desk {
    pub(crate) fn new(founders: Founders, records: Records) -> Self {
        Self { founders, records: Arc::new(Mutex::new(records)), conflict: Arc::default() }
    }

    fn records(&self) -> Records {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn others(&self) -> impl Iterator<Item = &String> {
        self.founders.others()
    }

    /// The name of the group.
    pub(crate) fn name(&self) -> String {
        self.founding().map_or_else(|| self.founders.name.clone(), |founding| founding.name)
    }

    /// The members that founded the group.
    pub(crate) fn members(&self) -> impl Iterator<Item = (u64, Peer)> {
        let founding = self.records().founding;
        founding.map(|founding| founding.members().collect::<Vec<_>>()).into_iter().flatten()
    }

    /// Whether it is this founder who begins the first term. It has seen all others hold the record.
    pub(crate) fn initializes(&self) -> bool {
        self.founders.is_first() && self.records().joined.is_none()
    }

    /// The record of the founding, which every member of a group has.
    pub(crate) fn founding(&self) -> Option<Founding> {
        self.records().founding
    }

    /// Whether the log of the group does not lead to its state, because that began with a backup.
    pub(crate) fn began_restored(&self) -> bool {
        self.founding().is_some_and(|founding| founding.base.is_some())
    }

    /// Whether this member came when the group was there already.
    pub(crate) fn has_joined(&self) -> bool {
        self.records().joined.is_some()
    }

    /// Who this folder is, if that is settled: it holds the record, and, if it is the one that has to know that all
    /// others hold it too, it has begun the first term already.
    pub(crate) fn known(&self, log: &LogStore) -> Result<Option<Identity>, Error> {
        let records = self.records();
        let Some(founding) = &records.founding else { return Ok(None) };
        if let Some((node, address)) = &records.joined {
            return self.known_as(*node, address, founding, records.incarnation).map(Some);
        }
        founding.check(&self.founders.name, &self.founders.addresses)?;
        let identity = founding.identity(&self.founders.own, records.incarnation)?;
        let settled = !self.founders.is_first() || !log.is_pristine();
        Ok(settled.then_some(identity))
    }

    /// Who this folder is that has joined: it does not matter whom the application takes for the founders.
    fn known_as(
        &self,
        node: u64,
        address: &str,
        founding: &Founding,
        incarnation: u64,
    ) -> Result<Identity, Error> {
        let Founders { name, own, .. } = &self.founders;
        let detail = if own != address {
            // A group of one has no address.
            let own = if own.is_empty() { "alone, with solo()" } else { own };
            format!("this member has joined the group at {address}: start it there, and not {own}")
        } else if !name.is_empty() && *name != founding.name {
            format!("the group is named {:?}, not {name:?}", founding.name)
        } else {
            return Ok(Identity { group: founding.group, node, incarnation });
        };
        Err(Reason::FoundersDiffer { detail }.into())
    }

    /// Founds a group of one.
    pub(crate) async fn found_alone(&self, log: &LogStore) -> Result<Identity, Error> {
        self.consider(log, &[]).await?;
        let identity = self.consider(log, &[]).await?;
        identity.ok_or_else(|| Fault::assertion("a founder without others waits for nobody").into())
    }

    /// The incarnation of a founder, if this member knows its group.
    pub(crate) fn incarnation(&self, node: u64) -> Option<u64> {
        let founding = self.records().founding?;
        let mut members = founding.members();
        members.find(|(id, _)| *id == node).map(|(_, peer)| peer.incarnation)
    }

    /// Answers the question of another founder.
    pub(crate) fn answer(&self, question: &Bytes) -> Result<Bytes, Error> {
        let malformed = |_| Reason::Malformed { what: "founding message".to_owned() };
        let ask: Ask = codec::decode(question).map_err(malformed)?;
        let records = self.records();
        let answer = match records.founding {
            Some(founding) => Answer::Founded(founding),
            None => {
                let same = self.founders.check(&ask.own, &ask.name, &ask.addresses);
                let same = same.and_then(|()| self.founders.check_base(&ask.own, ask.base));
                if let Err(error) = same {
                    // Whoever is not on the list may say what it likes.
                    if self.founders.others().any(|address| *address == ask.own) {
                        let _ = self.conflict.set(error.clone());
                    }
                    return Err(error);
                }
                Answer::Empty {
                    name: self.founders.name.clone(),
                    addresses: self.founders.addresses.clone(),
                    incarnation: records.incarnation,
                    base: self.founders.base,
                }
            }
        };
        Ok(codec::encode(&answer).into())
    }

    /// Asks all others until this member knows who it is, and, if it is the first, until the group stands.
    pub(crate) async fn found(
        &self,
        log: &LogStore,
        clients: BTreeMap<String, RpcClient>,
        patience: Duration,
    ) -> Result<Identity, Error> {
        let started = Instant::now();
        loop {
            let answers = self.ask_all(&clients).await;
            if let Some(identity) = self.consider(log, &answers).await? {
                return Ok(identity);
            }
            if let Some(conflict) = self.conflict.get() {
                return Err(conflict.clone());
            }
            if started.elapsed() > patience {
                return Err(not_founded(&answers));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn ask_all<'a>(
        &'a self,
        clients: &'a BTreeMap<String, RpcClient>,
    ) -> Vec<(&'a str, Result<Answer, Error>)> {
        let Founders { own, name, addresses, base } = self.founders.clone();
        let ask = Ask { own, name, addresses, base };
        let question = Bytes::from(codec::encode(&ask));
        let others = self.founders.others().filter_map(|address| clients.get_key_value(address));
        join_all(others.map(|(address, client)| {
            let call = Call { request: Request::Founding(question.clone()), timeout: ASK_TIMEOUT };
            async move { (address.as_str(), read_answer(client.call(call).await)) }
        }))
        .await
    }

    /// Takes the next step, if the answers allow one.
    async fn consider(
        &self,
        log: &LogStore,
        answers: &[(&str, Result<Answer, Error>)],
    ) -> Result<Option<Identity>, Error> {
        let mut records = self.records();
        let mut seen = BTreeMap::from([(records.incarnation, self.founders.own.as_str())]);
        for (address, answer) in answers {
            match answer {
                Ok(Answer::Empty { name, addresses, incarnation, base }) => {
                    self.founders.check(address, name, addresses)?;
                    self.founders.check_base(address, *base)?;
                    if let Some(same) = seen.insert(*incarnation, address) {
                        let detail = format!("{same} and {address} are one and the same node");
                        return Err(Reason::BadMembers { detail }.into());
                    }
                }
                // A refusal does not go away by asking again, but certificates may be on their way.
                Err(error)
                    if !error.is_retryable() && error.kind() != ErrorKind::Unauthenticated =>
                {
                    return Err(error.clone());
                }
                Ok(Answer::Founded(_)) | Err(_) => {}
            }
        }
        let shown = answers.iter().find_map(|(_, answer)| match answer {
            Ok(Answer::Founded(founding)) => Some(founding),
            _ => None,
        });
        match (&records.founding, shown) {
            (None, Some(founding)) => {
                founding.check(&self.founders.name, &self.founders.addresses)?;
                let identity = founding.identity(&self.founders.own, records.incarnation)?;
                self.founders.check_base("the group", founding.base)?;
                records.found(log, founding.clone()).await?;
                *self.records.lock().unwrap_or_else(PoisonError::into_inner) = records;
                Ok(Some(identity))
            }
            (None, None) if self.founders.is_first() => {
                if let Some(founding) = self.draw_up(&records, answers) {
                    records.found(log, founding).await?;
                    *self.records.lock().unwrap_or_else(PoisonError::into_inner) = records;
                }
                Ok(None)
            }
            (None, None) => Ok(None),
            (Some(own), _) => {
                let stands = answers.iter().all(|(_, answer)| match answer {
                    Ok(Answer::Founded(founding)) => founding == own,
                    Ok(Answer::Empty { .. }) | Err(_) => false,
                });
                self.check_empty(own, answers)?;
                let identity = own.identity(&self.founders.own, records.incarnation)?;
                Ok(stands.then_some(identity))
            }
        }
    }

    /// The record, once every other founder has said that it is empty.
    fn draw_up(
        &self,
        records: &Records,
        answers: &[(&str, Result<Answer, Error>)],
    ) -> Option<Founding> {
        let own = Founder { address: self.founders.own.clone(), incarnation: records.incarnation };
        let mut founders = vec![own];
        for (address, answer) in answers {
            let Ok(Answer::Empty { incarnation, .. }) = answer else { return None };
            founders.push(Founder { address: (*address).to_owned(), incarnation: *incarnation });
        }
        Some(Founding::new(&self.founders.name, founders, self.founders.base))
    }

    /// Who is empty, but with another incarnation than the record names, was replaced while the group was being founded.
    fn check_empty(
        &self,
        own: &Founding,
        answers: &[(&str, Result<Answer, Error>)],
    ) -> Result<(), Error> {
        answers.iter().try_for_each(|(address, answer)| match answer {
            Ok(Answer::Empty { incarnation, .. }) => own.identity(address, *incarnation).map(drop),
            Ok(Answer::Founded(other)) if other != own => Err(Reason::GroupMismatch.into()),
            Ok(Answer::Founded(_)) | Err(_) => Ok(()),
        })
    }
}

/// Who was waited for, and why in vain.
fn not_founded(answers: &[(&str, Result<Answer, Error>)]) -> Error {
    let why = |address: &str, error: &Error| match error.reason() {
        Reason::Unreachable { detail } => detail.clone(),
        _ => format!("{address}: {error}"),
    };
    let silent = answers.iter();
    let silent = silent.filter_map(|(address, it)| it.as_ref().err().map(|it| why(address, it)));
    let silent: Vec<String> = silent.collect();
    let detail = if silent.is_empty() {
        "the group is not founded: all founders answer this one, but not each other".to_owned()
    } else {
        format!("the group is not founded, for not all founders answer: {}", silent.join("; "))
    };
    Reason::Unreachable { detail }.into()
}

fn read_answer(answer: Result<Response, Error>) -> Result<Answer, Error> {
    let malformed = || Error::from(Reason::Malformed { what: "founding message".to_owned() });
    match answer? {
        Response::Founding(bytes) => codec::decode(&bytes).map_err(|_| malformed()),
        _ => Err(malformed()),
    }
}
