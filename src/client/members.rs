//! Who is in the group, and who votes: what an operator asks of it.
//!
//! ```text
//! Node::join ──▶ learner ──┬─ promote_member(it) ───────────────▶ one voter more
//!                          └─ replace_member(old).with(it) ─────▶ as many voters as before, in one change
//!                                      remove_member(it) ───────▶ gone; the id is never used again
//! ```
//!
//! Any member passes these on to the leader. Each may be called again when its outcome is unknown: what has happened
//! already is a success. But for a replacement that does not say who comes: of a member that is gone nobody can tell whether
//! somebody took its place, or it was just removed.
//!
//! Invariant: whoever is to vote has caught up first. A call waits for that as long as its timeout allows, and its error
//! says how much is missing.

use super::Client;
use super::backoff::Backoff;
use super::link::{is_passing, late, unexpected};
use super::ops::request;
use crate::api::{Change, Request, Response};
use crate::error::{Reason, Result};
use crate::types::{Member, NodeId, limits};
use std::time::Duration;
use tokio::time::Instant;

impl Client {
    /// Asks the leader who the members are, who of them votes, and how far each is behind.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// let members = client.members().await?;
    /// assert_eq!(members[0].id, node.id());
    /// assert!(members[0].is_voter && members[0].is_leader);
    /// # Ok(()) }
    /// ```
    pub fn members(&self) -> MemberList<'_> {
        MemberList { client: self, timeout: None }
    }

    /// Makes a member that has joined a voter. It waits until the member has caught up, as long as its timeout allows.
    ///
    /// The number of voters grows by one, and with an even number the group survives no more losses than with one less: to
    /// put a member in the place of another, [replace](Self::replace_member) it.
    ///
    /// # Errors
    ///
    /// - [`Reason::NotCaughtUp`] if the time is up before the member has caught up: call again;
    /// - [`Reason::MemberNotFound`] if there is none of this id;
    /// - [`Reason::QuorumAtRisk`] if the voters that answer would be no majority any more;
    /// - [`Reason::MembersAreChanging`] if another change is not finished: call again.
    ///
    /// ```
    /// # async fn f(client: quorate::Client, node: quorate::Node) -> quorate::Result<()> {
    /// // `node` has joined.
    /// client.promote_member(node.id()).await?;
    /// # Ok(()) }
    /// ```
    pub fn promote_member(&self, id: impl Into<NodeId>) -> PromoteMember<'_> {
        PromoteMember { client: self, id: id.into(), timeout: None }
    }

    /// Puts a member that has joined in the place of another, in one change: the group never has a voter less meanwhile. It
    /// waits until the new one has caught up, as long as its timeout allows.
    ///
    /// This is what to do about a member whose data was lost or damaged, or whose host is gone: start a node with an empty
    /// folder and [`join`](crate::NodeBuilder::join), under the same address if that is free, and call this. The old id is
    /// never used again. If that member still runs, it hears of it and ends with
    /// [`Reason::MemberRemoved`].
    ///
    /// # Errors
    ///
    /// Those of [`promote_member`](Self::promote_member), and [`Reason::BadMembers`] if nobody has
    /// joined, or [`with`](ReplaceMember::with) is missing and there are several who could be meant.
    ///
    /// If the outcome is unknown, call again with [`with`](ReplaceMember::with): it succeeds if that has happened already.
    /// Without it, a member that is gone is [`Reason::MemberNotFound`], whether it was replaced
    /// or [removed](Self::remove_member); [`members`](Self::members) says who votes.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// use quorate::Node;
    /// # let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    /// # let addresses = [free()?, free()?, free()?].map(|address| address.to_string());
    /// # let member = |n: usize| {
    /// #     let address = addresses[n].clone();
    /// #     Node::builder(folder.path().join(n.to_string())).listen(address).form(addresses.clone())
    /// # };
    /// # let (first, second, third) = futures::future::try_join3(member(0), member(1), member(2)).await?;
    /// # futures::future::try_join3(first.ready(), second.ready(), third.ready()).await?;
    /// let client = first.client();
    /// let lost = third.id();
    /// third.shutdown().await?; // and its disk is lost
    ///
    /// let data = folder.path().join("a new disk");
    /// let new = Node::builder(data).listen(&addresses[2]).join(&addresses[..2]).await?;
    /// client.replace_member(lost).with(new.id()).await?;
    ///
    /// let voters: Vec<_> = client.members().await?.into_iter().filter(|it| it.is_voter).map(|it| it.id).collect();
    /// assert!(voters.contains(&new.id()) && !voters.contains(&lost));
    /// # Ok(()) }
    /// ```
    pub fn replace_member(&self, id: impl Into<NodeId>) -> ReplaceMember<'_> {
        ReplaceMember { client: self, old: id.into(), new: None, timeout: None }
    }

    /// Removes a member from the group, a voter or a learner. Its id is never used again, and if it still runs it ends with
    /// [`Reason::MemberRemoved`].
    ///
    /// # Errors
    ///
    /// - [`Reason::QuorumAtRisk`] if the voters that answer would be no majority any more, or
    ///   none would be left. Replace members that are down, rather than remove members that are not;
    /// - [`Reason::MemberNotFound`] if there never was one of this id;
    /// - [`Reason::MembersAreChanging`] if another change is not finished: call again.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// use quorate::Reason;
    ///
    /// let refused = client.remove_member(node.id()).await.unwrap_err();
    /// assert!(matches!(refused.reason(), Reason::QuorumAtRisk { .. }), "it is the last");
    /// # Ok(()) }
    /// ```
    pub fn remove_member(&self, id: impl Into<NodeId>) -> RemoveMember<'_> {
        RemoveMember { client: self, id: id.into(), timeout: None }
    }

    /// Each try has all the time that is left: it may have to wait until a learner has caught up.
    async fn change_members(&self, change: Change, timeout: Option<Duration>) -> Result<()> {
        let all = timeout.unwrap_or(self.link().timeout()).min(limits::CALL_TIMEOUT_MAX);
        let began = Instant::now();
        let (mut backoff, mut is_unknown) = (Backoff::retry(), false);
        loop {
            let left = all.saturating_sub(began.elapsed());
            let request = Request::Change { change, forwarded: false };
            let error = match self.link().call(request, Some(left)).await {
                Ok(Response::Change) => return Ok(()),
                Ok(other) => return Err(unexpected(&other).unknown_outcome()),
                Err(error) => error,
            };
            // What has happened already is answered as done, and what is under way waited for, whosever it is.
            is_unknown |= error.may_have_applied();
            let pause = backoff.next();
            let may_pass = self.link().repeats() && is_passing(&error);
            if !may_pass || all.saturating_sub(began.elapsed()) <= pause {
                let error = late(error, all);
                return Err(if is_unknown { error.unknown_outcome() } else { error });
            }
            self.link().sleep(pause).await;
        }
    }
}

/// Asks who the members are. Made by [`Client::members`].
///
/// ```
/// # async fn f(client: quorate::Client) -> quorate::Result<()> {
/// for member in client.members().timeout(std::time::Duration::from_secs(1)).await? {
///     println!("{member:?}");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct MemberList<'a> {
    client: &'a Client,
    timeout: Option<Duration>,
}
request!(MemberList -> Vec<Member>);

impl MemberList<'_> {
    async fn send(self) -> Result<Vec<Member>> {
        let request = Request::Members { forwarded: false };
        match self.client.link().ask(request, self.timeout).await? {
            Response::Members(members) => Ok(members),
            other => Err(unexpected(&other)),
        }
    }
}

/// Makes a learner a voter. Made by [`Client::promote_member`].
///
/// ```
/// # async fn f(client: quorate::Client, id: quorate::NodeId) -> quorate::Result<()> {
/// client.promote_member(id).timeout(std::time::Duration::from_secs(60)).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct PromoteMember<'a> {
    client: &'a Client,
    id: NodeId,
    timeout: Option<Duration>,
}
request!(PromoteMember -> ());

impl PromoteMember<'_> {
    async fn send(self) -> Result<()> {
        self.client.change_members(Change::Promote(self.id), self.timeout).await
    }
}

/// Removes a member. Made by [`Client::remove_member`].
///
/// ```
/// # async fn f(client: quorate::Client, id: quorate::NodeId) -> quorate::Result<()> {
/// client.remove_member(id).timeout(std::time::Duration::from_secs(3)).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct RemoveMember<'a> {
    client: &'a Client,
    id: NodeId,
    timeout: Option<Duration>,
}
request!(RemoveMember -> ());

impl RemoveMember<'_> {
    async fn send(self) -> Result<()> {
        self.client.change_members(Change::Remove(self.id), self.timeout).await
    }
}

/// Puts one member in the place of another. Made by [`Client::replace_member`].
///
/// ```
/// # async fn f(client: quorate::Client, old: quorate::NodeId, new: quorate::NodeId) -> quorate::Result<()> {
/// client.replace_member(old).with(new).timeout(std::time::Duration::from_secs(60)).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct ReplaceMember<'a> {
    client: &'a Client,
    old: NodeId,
    new: Option<NodeId>,
    timeout: Option<Duration>,
}
request!(ReplaceMember -> ());

impl ReplaceMember<'_> {
    /// Who comes. If not said, it is the only one that has joined and does not vote.
    pub fn with(mut self, id: impl Into<NodeId>) -> Self {
        self.new = Some(id.into());
        self
    }

    async fn send(self) -> Result<()> {
        let Self { client, old, new, timeout } = self;
        let (started, timeout) = (Instant::now(), timeout.unwrap_or(client.link().timeout()));
        let new = match new {
            Some(new) => new,
            // Who that is is found out once, so that what is tried again on the way there means the same.
            None => self.only_learner(timeout).await?,
        };
        let left = timeout.saturating_sub(started.elapsed());
        client.change_members(Change::Replace { old, new: Some(new) }, Some(left)).await
    }

    /// The member that can only be meant to come.
    async fn only_learner(&self, timeout: Duration) -> Result<NodeId> {
        let members = self.client.members().timeout(timeout).await?;
        if members.iter().all(|member| member.id != self.old) {
            return Err(Reason::MemberNotFound { node: self.old }.into());
        }
        let learners = members.iter().filter(|member| !member.is_voter);
        let learners: Vec<u64> = learners.map(|member| member.id.get()).collect();
        let detail = match learners[..] {
            [learner] => return Ok(learner.into()),
            [] => "there is nobody to come: a node has to join first".to_owned(),
            _ => format!("there are several who could come, so say who: {learners:?}"),
        };
        Err(Reason::BadMembers { detail }.into())
    }
}
