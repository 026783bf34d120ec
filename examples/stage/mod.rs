//! The stage of the quickstart: processes that are started, told things, heard, killed, and never left behind.
//!
//! No wait is for ever: it ends with the word that was waited for, with the end of any member that was to live on, or
//! when the story has taken too long.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long the story may take.
const STORY_MAX: Duration = Duration::from_secs(60);

/// Which member said what.
type Line = (usize, String);

/// The processes and their files. Dropping it ends the ones and removes the others.
pub(crate) struct Group {
    members: Vec<Child>,
    addresses: Vec<String>,
    lines: (Sender<Line>, Receiver<Line>),
    /// What was said while something else was waited for.
    unread: Vec<Line>,
    until: Instant,
    folder: TempDir,
}

/// Who was elected, and what proves it.
pub(crate) struct Leader {
    pub(crate) who: usize,
    pub(crate) token: u64,
    place: String,
}

impl Leader {
    pub(crate) fn others(&self) -> [usize; 2] {
        [(self.who + 1) % 3, (self.who + 2) % 3]
    }

    /// The order to pass a write of this leader on.
    pub(crate) fn write(&self, value: &str) -> String {
        format!("write {} {} {value}", self.place, self.token)
    }
}

impl Group {
    /// Starts three members with ports and folders of their own, and waits until they are a group.
    pub(crate) fn form() -> Result<Self> {
        'ports: loop {
            let mut group = Self::start()?;
            for _ in 0..3 {
                if group.hear(None, "ready")?.1 == "no" {
                    continue 'ports; // this one's was taken
                }
            }
            return Ok(group);
        }
    }

    fn start() -> Result<Self> {
        let free = || TcpListener::bind("127.0.0.1:0");
        let ports = [free()?, free()?, free()?]; // held at once, so that they differ
        let mut addresses = Vec::new();
        for port in &ports {
            addresses.push(port.local_addr()?.to_string());
        }
        addresses.sort(); // ids are given in this order
        drop(ports);
        let folder = tempfile::Builder::new().prefix("quorate-").tempdir()?;
        let (lines, unread, until) = (channel(), Vec::new(), Instant::now() + STORY_MAX);
        let mut group = Self { members: Vec::new(), addresses, lines, unread, until, folder };
        for who in 0..3 {
            let member = group.spawn(who)?;
            group.members.push(member);
        }
        Ok(group)
    }

    /// Starts this program as a member, and listens to it.
    fn spawn(&self, who: usize) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["member", &name(who)]).arg(self.folder.path()).arg(&self.addresses[who]);
        command.args(&self.addresses).stdin(Stdio::piped()).stdout(Stdio::piped());
        #[cfg(unix)] // so that Ctrl-C ends the narrator alone, and `orders` does the rest
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut member = command.spawn()?;
        let said = BufReader::new(member.stdout.take().ok_or("it is piped")?);
        let lines = self.lines.0.clone();
        std::thread::spawn(move || {
            for line in said.lines().map_while(std::io::Result::ok) {
                match line.strip_prefix("say ") {
                    Some(text) => println!("   {} │ {text}", name(who)),
                    None => drop(lines.send((who, line))),
                }
            }
            lines.send((who, "ended".to_owned()))
        });
        Ok(member)
    }

    /// Starts a member that has ended, with the same port and folder.
    pub(crate) fn start_again(&mut self, who: usize) -> Result {
        loop {
            self.members[who] = self.spawn(who)?;
            if self.hear(Some(who), "ready")?.1 == "yes" {
                return Ok(());
            }
            self.hear(Some(who), "ended")?; // its port was taken, and may be free again
        }
    }

    pub(crate) fn kill(&mut self, who: usize) -> Result {
        self.members[who].kill()?; // SIGKILL, on Unix
        self.members[who].wait()?;
        self.hear(Some(who), "ended").map(drop)
    }

    /// Ends all members in good order, and shows that nothing is left of them.
    pub(crate) fn disband(mut self) -> Result {
        for who in 0..3 {
            self.tell(who, "shutdown")?;
            self.hear(Some(who), "ended")?;
            assert!(self.members[who].wait()?.success(), "{} failed at its end", name(who));
        }
        let folder = self.folder.path().to_owned();
        drop(self);
        assert!(!folder.exists());
        Ok(())
    }

    pub(crate) fn tell(&mut self, who: usize, order: &str) -> Result {
        let stdin = self.members[who].stdin.as_mut().ok_or("it is piped")?;
        Ok(writeln!(stdin, "{order}")?)
    }

    /// Tells a member something, and waits for the answer.
    pub(crate) fn ask(&mut self, who: usize, order: &str) -> Result<String> {
        self.tell(who, order)?;
        Ok(self.hear(Some(who), first_word(order))?.1)
    }

    /// Waits for a line that begins with `topic`, of one member or of any. Yields whose it is, and the rest of it.
    pub(crate) fn hear(&mut self, who: Option<usize>, topic: &str) -> Result<Line> {
        loop {
            let wanted = |(from, line): &Line| {
                who.is_none_or(|who| who == *from) && first_word(line) == topic
            };
            if let Some(at) = self.unread.iter().position(wanted) {
                let (from, line) = self.unread.remove(at);
                return Ok((from, line[topic.len()..].trim_start().to_owned()));
            }
            if let Some((from, _)) = self.unread.iter().find(|(_, line)| line == "ended") {
                return Err(format!("{} has ended, and was not to", name(*from)).into());
            }
            let left = self.until.saturating_duration_since(Instant::now());
            let late = |_| format!("no {topic:?} was heard, and {STORY_MAX:?} are over");
            self.unread.push(self.lines.1.recv_timeout(left).map_err(late)?);
        }
    }

    /// Waits until somebody leads with a larger token than `token`.
    pub(crate) fn leader_after(&mut self, token: u64) -> Result<Leader> {
        loop {
            let (who, new) = self.hear(None, "leads")?;
            if new.parse::<u64>()? > token {
                let place = self.ask(who, &format!("place {new}"))?;
                return Ok(Leader { who, token: new.parse()?, place });
            }
        }
    }

    /// Who leads Raft, as far as a member has heard.
    pub(crate) fn raft_leader(&mut self, asked: usize) -> Result<usize> {
        loop {
            let id: usize = self.ask(asked, "raft-leader")?.parse()?;
            if id > 0 {
                return Ok(id - 1);
            }
        }
    }

    /// The hash of the state of all three, which must be equal as of an equal position of the log.
    pub(crate) fn common_hash(&mut self) -> Result<String> {
        loop {
            let states = [self.ask(0, "state")?, self.ask(1, "state")?, self.ask(2, "state")?];
            if states.iter().all(|state| first_word(state) == first_word(&states[0])) {
                assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
                return Ok(states[0][first_word(&states[0]).len() + 1..].to_owned());
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for member in &mut self.members {
            // One that has ended by itself cannot be killed.
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// In a member: what the narrator says. A member that has lost its narrator clears the stage, and ends.
pub(crate) fn orders(folder: &Path) -> tokio::sync::mpsc::Receiver<String> {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(101); // in whichever task it was
    }));
    let (heard, orders) = tokio::sync::mpsc::channel(1);
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        for order in std::io::stdin().lines().map_while(std::io::Result::ok) {
            let _ = heard.blocking_send(order);
        }
        let _ = std::fs::remove_dir_all(folder);
        std::process::exit(1);
    });
    orders
}

/// In a member: a line for the audience.
pub(crate) fn say(text: impl Display) {
    println!("say {text}");
}

/// In a member: a line for the narrator.
pub(crate) fn tell(text: impl Display) {
    println!("{text}");
}

pub(crate) fn chapter(title: &str) {
    println!("\n{:─<80}", format!("── {title} "));
}

pub(crate) fn narrate(text: impl Display) {
    println!("   {text}");
}

/// How long it took.
pub(crate) fn since(began: Instant) -> String {
    let took = began.elapsed();
    match took.as_millis() {
        ms @ 0..1000 => format!("{ms} ms"),
        _ => format!("{:.1} s", took.as_secs_f64()),
    }
}

pub(crate) fn name(who: usize) -> String {
    format!("node-{}", who + 1)
}

fn first_word(line: &str) -> &str {
    line.split(' ').next().unwrap_or(line)
}
