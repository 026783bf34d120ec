//! **The power goes on all members at once, at any moment: no acknowledged write is lost, and no two members disagree.**
//!
//! A group of real members, with real threads and sockets, works for a while, and every change of its disks is written
//! down with its time. Then, for moments of that time and for each way in which a disk may forget, the disks are made what
//! they would have been, and the members start on them, in the simulation, where that takes milliseconds.
//!
//! ```text
//! recording ─▶ journal: write, sync, rename …, by member ─┐ up to a moment ─▶ models ─▶ lose ─▶ images ─▶ start ─▶ checks
//!           └▶ book: who was told what, and when ─────────┴───────────────── as of that moment ──────────────────▶┘
//! ```
//!
//! Whatever anybody had been told by that moment has to be so: writes, reads, watches, and the members' own history. The
//! group serves again, all are equal, and leases that nobody renews end. No member may refuse to start: a disk that
//! forgets what was not synced is a disk in order.
//!
//! In some of them all members are killed first, and start, and go on for a while; what nobody had synced at that moment is
//! all there for them, and goes with the power later, unless they have seen to it.

mod record;

use crate::book::{Book, Pages};
use crate::check::agreement::Truth;
use crate::dice::Dice;
use crate::disk;
use crate::disk::model::{Loss, Lost, Model};
use crate::group::{Group, History, Setup, folder};
use crate::history::Moment;
use crate::many;
use crate::nemesis::Nemesis;
use crate::net::{Net, Weather};
use crate::points::Points;
use crate::run::{self, Run};
use crate::system;
use record::Recording;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

pub const MEMBERS: usize = 3;

/// What came out of a recording and its images.
#[derive(Debug, Default)]
pub struct Report {
    pub violations: Vec<String>,
    /// What there was, by name.
    pub counts: BTreeMap<&'static str, u64>,
    pub simulated: Duration,
}

pub fn setup(seed: u64) -> Setup {
    let mut dice = Dice::new(seed).fork("power");
    let millis = Duration::from_millis;
    // Of each process its own, so that several can record at once.
    let [.., high, low] = std::process::id().to_be_bytes();
    Setup {
        seed,
        members: MEMBERS,
        heartbeat: millis(50),
        step: millis(2),
        history: History::All,
        is_tight: false,
        snapshot_every: *dice.pick(&[2, 5, 20, 100]),
        weather: Weather { latency: (millis(1), millis(2)), loss: 0, twice: 0, again: millis(200) },
        rates: vec![0; MEMBERS + 1],
        sync_takes: vec![Duration::ZERO; MEMBERS],
        workers: 0,
        lasts: millis(dice.within(1500, 4000)),
        network: [high, low],
    }
}

/// Records one group, and tries so many images of it.
pub fn one(seed: u64, images: u64) -> Report {
    let root = tempfile::Builder::new().prefix("quorate-power").tempdir_in(run::place());
    // Whatever goes wrong: somebody may want to look.
    let root = root.expect("a folder").keep();
    let mut dice = Dice::new(seed).fork("moments");
    let setup = setup(seed);
    let net = Net::new(dice.fork("net"), setup.weather);
    let points = Points::new(dice.fork("points"), net.clone(), Book::default(), &root, MEMBERS);
    quorate::sim::install_hook(points.clone());
    let recording = Recording::make(&setup, &root);
    let mut report = Report { violations: recording.violations.clone(), ..Report::default() };
    report.count("recordings", 1);
    report.count("changes of disks", recording.journal.len() as u64);
    report.count("operations", recording.pages.operations.len() as u64);
    report.count("revisions", recording.truth.head());
    report.count("states that were published", recording.published());

    many::settle_down();
    quorate::sim::install(net.clone());
    let mut images_left = images;
    let mut moments = Vec::new();
    // As often killed as each of the other ends.
    for _ in 0..images.div_ceil(LOSSES) {
        let losses = losses(&mut dice).map(End::Loses);
        moments.push((recording.moment(&mut dice), losses.to_vec()));
        moments.push((recording.naming(&mut dice), vec![End::KilledFirst]));
    }
    moments.sort_by_key(|(at, _)| *at);
    let mut disks = Disks::default();
    for (at, ends) in moments {
        disks.go_on(&recording, at);
        for end in ends {
            if images_left == 0 || !report.violations.is_empty() {
                break;
            }
            images_left -= 1;
            let image = Image { recording: &recording, at, end, number: images - images_left };
            let (net, points) = (net.clone(), points.clone());
            image.try_on(&disks, &setup, &root, (net, points), &mut report);
        }
    }
    if report.violations.is_empty() || std::env::var_os("BUGS").is_some() {
        let _ = std::fs::remove_dir_all(&root);
    } else {
        // As they were before the members started on them.
        report.violations.push(format!("the disks are in {}", root.display()));
    }
    report
}

/// How many ways of forgetting are tried at each moment.
const LOSSES: u64 = 4;

/// Within how many steps of the simulation members lose their power that have only just been started.
const STEPS: u64 = 300;

/// How the members end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Loses(Loss),
    /// They are killed, start, serve, and lose their power after that.
    KilledFirst,
}

fn losses(dice: &mut Dice) -> [Loss; LOSSES as usize - 1] {
    [Loss::All, Loss::Nothing, Loss::Some(*dice.pick(&[10, 50, 90]))]
}

/// The disks of a recording, up to some moment of it.
#[derive(Default)]
struct Disks {
    models: [Model; MEMBERS],
    carried_out: usize,
}

impl Disks {
    fn go_on(&mut self, recording: &Recording, to: Moment) {
        while let Some(entry) = recording.journal.get(self.carried_out)
            && entry.at <= to
        {
            let member = recording.folders.iter().position(|folder| *folder == entry.member);
            self.models[member.expect("a member's disk")].carry_out(&entry.change);
            self.carried_out += 1;
        }
    }
}

/// One loss of power.
struct Image<'a> {
    recording: &'a Recording,
    at: Moment,
    end: End,
    number: u64,
}

impl Image<'_> {
    /// Starts a group on what the disks have kept.
    fn try_on(
        &self,
        disks: &Disks,
        setup: &Setup,
        root: &Path,
        (net, points): (Net, Points),
        report: &mut Report,
    ) {
        let mut dice = Dice::new(setup.seed).fork(&format!("image {}", self.number));
        system::take_over_randomness(dice.fork("system"));
        system::set_clock(Duration::ZERO);
        disk::take_over(root, dice.fork("disk"));
        net.reset(dice.fork("net"), setup.weather);
        let mut lost = Lost::default();
        let images = disks.models.each_ref().map(|it| match self.end {
            End::Loses(loss) => it.image(loss, &mut dice, &mut lost),
            End::KilledFirst => it.now().clone(),
        });
        for (index, model) in disks.models.iter().enumerate() {
            match self.end {
                End::Loses(_) => disk::replace(&folder(root, index), images[index].clone()),
                End::KilledFirst => disk::replace_killed(&folder(root, index), model.clone()),
            }
        }
        let pages = self.recording.pages.as_of(self.at);
        let truth = self.recording.truth.as_of(&pages);
        let acknowledged = pages.operations.iter().filter(|it| it.end().is_some()).count();
        report.count("images", 1);
        report.count("images of members killed first", u64::from(self.end == End::KilledFirst));
        report.count("writes lost", lost.writes);
        report.count("writes torn", lost.torn);
        report.count("names lost", lost.names);
        report.count("answers that had to hold", acknowledged as u64);
        let found = self.start(setup, root, (net, points), pages, truth, &mut dice);
        report.simulated += found.1;
        if !found.0.is_empty() {
            for (index, image) in images.into_iter().enumerate() {
                disk::replace(&folder(root, index), image);
            }
            let (Self { at, end, number, .. }, seed) = (self, setup.seed);
            report.violations.push(format!(
                "recording {seed}, image {number}, after {} changes, at {at:?}, {end:?}:",
                disks.carried_out
            ));
            report.violations.extend(found.0);
        }
    }

    fn start(
        &self,
        setup: &Setup,
        root: &Path,
        (net, points): (Net, Points),
        pages: Pages,
        truth: Truth,
        dice: &mut Dice,
    ) -> (Vec<String>, Duration) {
        let head = truth.head();
        let group = Group::new(setup.clone(), root, Book::of(pages), net, points);
        let nemesis = Nemesis::none(&group);
        let mut run = Run::new(group, nemesis, truth);
        (0..MEMBERS).for_each(|index| run.group.start(index));
        if self.end == End::KilledFirst {
            // Some of them before they are half up.
            match dice.percent(50) {
                true => run.recover(0),
                false => (0..dice.roll(STEPS)).for_each(|_| run.step()),
            }
            run.group.book.pages().probed = 0;
            (0..MEMBERS).for_each(|index| run.group.lose_power(index));
            (0..MEMBERS).for_each(|index| run.group.restart(index));
        }
        run.recover(0);
        let revisions = run.group.members.iter().filter_map(|it| it.peek()).map(|it| it.revision);
        let behind: Vec<u64> = revisions.filter(|revision| *revision < head).collect();
        let report = run.report();
        let mut violations = report.violations;
        if !behind.is_empty() {
            violations.push(format!("lost: revision {head} was seen, and now it is {behind:?}"));
        }
        (violations, report.simulated)
    }
}

impl Report {
    fn count(&mut self, what: &'static str, more: u64) {
        *self.counts.entry(what).or_default() += more;
    }
}
