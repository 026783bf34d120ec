//! Looks over the pages of a file before LMDB maps it.
//!
//! LMDB believes every number in its file. One bit that flips in the head of a page, and it reads beyond the map or
//! writes over its own memory: the process of the application would die, or worse. So whatever LMDB would follow (page
//! numbers, offsets, sizes) is followed here first, with checks. What is *in* the rows has checksums of its own.
//!
//! ```text
//! meta 0, meta 1 ─ the newer one ─┬─ free ──▶ leaves ─▶ lists of pages that may be used again
//!                                 └─ main ──▶ leaves ─▶ each table: branches ─▶ leaves ─▶ overflow pages
//!
//! page   number u64 | – u16 | flags u16 | lower u16 | upper u16 | offsets of nodes …      … nodes
//!                                         (overflow: pages u32)
//! node   leaf: size u32 | flags u16 | key size u16 | key | data, or the number of an overflow page
//!        branch: child u48 | key size u16 | key
//! ```
//!
//! Invariants of the file, each of which is checked
//! - every page that is reached is within the file, is where its number says, and is reached once, or is free;
//! - nodes lie within their page and do not overlap; their keys rise, and lie between those of the branches above;
//! - a tree has the depth and the number of pages and entries that it says;
//! - the number of the last transaction is on the page where LMDB looks for it and can still rise, and no pages were
//!   freed by one after it.
//!
//! The layout is that of LMDB 0.9 on 64 bits, in the byte order of the host. On others nothing is checked.

#![expect(clippy::host_endian_bytes, reason = "LMDB's files are in the byte order of the host")]

use rustix::io::Errno;
use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

/// Larger files are believed, unless there is a reason not to: to look them over would take longer than a start may.
const AUDITED_BYTES: u64 = 256 << 20;

const MAGIC: u32 = 0xbeef_c0de;
const VERSION: u32 = 1;
const PAGE_SIZES: Range<usize> = 512..(64 << 10) + 1;
const PAGE_HEAD: usize = 16;
const NODE_HEAD: usize = 8;
const TREE_BYTES: usize = 48;
const DEPTH_MAX: u16 = 32;
/// Pages at the end of a file that were never written, because they were free again before the commit.
const UNWRITTEN_MAX: u64 = 1 << 16;
/// No file has seen so many transactions. LMDB adds one to the number, and takes 0 for the oldest of all.
const TRANSACTION_MAX: u64 = 1 << 62;
/// The first page that is none of the two metas.
const FIRST_PAGE: u64 = 2;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META: u16 = 0x08;

/// The data of the node is on overflow pages; or is a tree.
const BIG: u16 = 0x01;
const TREE: u16 = 0x02;
const INTEGER_KEYS: u16 = 0x08;
/// The root of an empty tree.
const NO_PAGE: u64 = u64::MAX;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// What leads to the rows, of a file that is not large.
    Small,
    /// All of it: the values too must be readable.
    All,
}

/// Why a file is not believed.
#[derive(Debug)]
pub(super) enum Finding {
    /// What is wrong, and on which page.
    Wrong(String),
    Io(io::Error),
}

impl From<io::Error> for Finding {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Wrong("a page is beyond its end".to_owned()),
            // A mapped page that cannot be read is the end of the process.
            _ if Errno::from_io_error(&error) == Some(Errno::IO) => {
                Self::Wrong("a page cannot be read".to_owned())
            }
            _ => Self::Io(error),
        }
    }
}

fn wrong<T>(page: u64, what: &str) -> Result<T, Finding> {
    Err(Finding::Wrong(format!("page {page}: {what}")))
}

/// Looks over a file, if there is one and it is of the kind that is known here. What is no such file is LMDB's to refuse.
pub(super) fn audit(path: &Path, depth: Depth) -> Result<(), Finding> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let length = file.metadata()?.len();
    if cfg!(not(target_pointer_width = "64")) || (depth == Depth::Small && length > AUDITED_BYTES) {
        return Ok(());
    }
    let Some(meta) = newest_meta(&mut file)? else { return Ok(()) };
    if meta.transaction > TRANSACTION_MAX {
        return wrong(0, "the number of its transaction makes no sense");
    }
    let in_file = length / meta.page_bytes as u64;
    if meta.pages > in_file + UNWRITTEN_MAX {
        return wrong(in_file, "the file ends before it");
    }
    let seen = vec![false; usize::try_from(meta.pages).expect("a page for each of the file")];
    let mut audit = Audit { depth, file, page_bytes: meta.page_bytes, in_file, seen };
    let mut tables = Vec::new();
    audit.tree(&meta.main, Keys::Bytes, &mut |audit, page, node| {
        if node.flags & TREE == 0 || node.data.len() != TREE_BYTES {
            return wrong(page, "what should be a table is none");
        }
        audit.plain_flags(page, node.data, 0)?;
        tables.push(Tree::read(node.data));
        Ok(())
    })?;
    for table in tables {
        audit.tree(&table, Keys::Bytes, &mut |_, page, node| match node.flags & TREE {
            0 => Ok(()),
            _ => wrong(page, "a row claims to be a table"),
        })?;
    }
    let mut free = Vec::new();
    audit.tree(&meta.free, Keys::Integers, &mut |audit, page, node| {
        if !(1..=meta.transaction).contains(&number(node.key)) {
            return wrong(page, "pages were freed by a transaction that never was");
        }
        let list = match node.big {
            Some((first, length)) => audit.read(first, PAGE_HEAD, length)?,
            None => node.data.to_vec(),
        };
        check_free(page, &list)?;
        free.extend(list.chunks_exact(8).skip(1).take(number(&list) as usize).map(number));
        Ok(())
    })?;
    // Last, when it is known which pages are in use.
    free.into_iter().try_for_each(|page| audit.visit(page, "it is free and in use"))?;
    let unwritten = (in_file..meta.pages).find(|page| !audit.seen[*page as usize]);
    unwritten.map_or(Ok(()), |page| wrong(page, "the file ends before it"))
}

/// What the newer of the two meta pages says.
struct Meta {
    page_bytes: usize,
    /// How many pages there are, the two metas included.
    pages: u64,
    transaction: u64,
    free: Tree,
    main: Tree,
}

/// `None`: LMDB will say what is wrong with it.
fn newest_meta(file: &mut File) -> Result<Option<Meta>, Finding> {
    const BYTES: usize = PAGE_HEAD + 24 + 2 * TREE_BYTES + 16;
    let mut metas = Vec::new();
    let mut at = 0;
    for page in 0..2 {
        let mut bytes = [0; BYTES];
        file.seek(SeekFrom::Start(at))?;
        match file.read_exact(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let meta = &bytes[PAGE_HEAD..];
        let is_meta = short(&bytes[10..]) & META != 0;
        if !is_meta || word(meta) != MAGIC || word(&meta[4..]) != VERSION {
            return Ok(None);
        }
        let page_bytes = word(&meta[24..]) as usize;
        if !page_bytes.is_power_of_two() || !PAGE_SIZES.contains(&page_bytes) {
            return wrong(page, "the size of pages makes no sense");
        }
        let (free, main) = (&meta[24..], &meta[24 + TREE_BYTES..]);
        if short(&free[4..]) != INTEGER_KEYS || short(&main[4..]) != 0 {
            return wrong(page, "unknown flags");
        }
        let tail = &main[TREE_BYTES..];
        let (free, main) = (Tree::read(free), Tree::read(main));
        let (pages, transaction) = (number(tail).saturating_add(1), number(&tail[8..]));
        metas.push(Meta { page_bytes, pages, transaction, free, main });
        at += page_bytes as u64;
    }
    let (second, first) = (metas.pop(), metas.pop());
    let (Some(first), Some(second)) = (first, second) else { return Ok(None) };
    if first.page_bytes != second.page_bytes {
        return wrong(0, "the size of pages is not that of page 1");
    }
    let (page, newest) = match second.transaction > first.transaction {
        true => (1, second),
        false => (0, first),
    };
    // LMDB takes the larger number, and then the page that such a number is written to.
    if newest.transaction % 2 != page {
        return wrong(page, "the number of its transaction belongs on the other meta page");
    }
    Ok(Some(newest))
}

/// What a tree says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tree {
    depth: u16,
    branch_pages: u64,
    leaf_pages: u64,
    overflow_pages: u64,
    entries: u64,
    root: u64,
}

impl Tree {
    fn read(bytes: &[u8]) -> Self {
        Self {
            depth: short(&bytes[6..]),
            branch_pages: number(&bytes[8..]),
            leaf_pages: number(&bytes[16..]),
            overflow_pages: number(&bytes[24..]),
            entries: number(&bytes[32..]),
            root: number(&bytes[40..]),
        }
    }
}

/// How the keys of a tree are compared.
#[derive(Clone, Copy)]
enum Keys {
    Bytes,
    Integers,
}

impl Keys {
    fn compare(self, left: &[u8], right: &[u8]) -> Ordering {
        match self {
            Self::Bytes => left.cmp(right),
            Self::Integers => number(left).cmp(&number(right)),
        }
    }
}

/// An entry of a leaf, or of a branch.
struct Node<'page> {
    key: &'page [u8],
    flags: u16,
    data: &'page [u8],
    /// The first overflow page and the length of the data there.
    big: Option<(u64, usize)>,
    child: u64,
}

type Visit<'visit> = dyn FnMut(&mut Audit, u64, &Node<'_>) -> Result<(), Finding> + 'visit;

struct Audit {
    depth: Depth,
    file: File,
    page_bytes: usize,
    /// How many pages the file has room for.
    in_file: u64,
    /// Which of all pages were reached already.
    seen: Vec<bool>,
}

/// What a walk through a tree has counted, and which keys may come.
struct Walk<'walk> {
    keys: Keys,
    counted: Tree,
    visit: &'walk mut Visit<'walk>,
}

impl Audit {
    /// Goes through a tree, and shows every entry.
    fn tree<'walk>(
        &mut self,
        tree: &Tree,
        keys: Keys,
        visit: &'walk mut Visit<'walk>,
    ) -> Result<(), Finding> {
        let none = Tree { branch_pages: 0, leaf_pages: 0, overflow_pages: 0, entries: 0, ..*tree };
        let mut walk = Walk { keys, counted: none, visit };
        let is_empty = tree.root == NO_PAGE && tree.depth == 0;
        if !is_empty {
            if !(1..=DEPTH_MAX).contains(&tree.depth) {
                return wrong(tree.root, "the depth of its tree makes no sense");
            }
            self.walk(&mut walk, tree.root, tree.depth, None, None)?;
        }
        match walk.counted == *tree {
            true => Ok(()),
            false => wrong(tree.root, "its tree has other pages or entries than it says"),
        }
    }

    fn walk(
        &mut self,
        walk: &mut Walk<'_>,
        at: u64,
        depth: u16,
        lowest: Option<&[u8]>,
        below: Option<&[u8]>,
    ) -> Result<(), Finding> {
        self.visit_used(at)?;
        let page = self.read(at, 0, self.page_bytes)?;
        let kind = if depth == 1 { LEAF } else { BRANCH };
        if number(&page) != at || short(&page[10..]) != kind {
            return wrong(at, "it is another page");
        }
        let nodes = nodes(at, &page, kind)?;
        if kind == LEAF {
            walk.counted.leaf_pages += 1;
            walk.counted.entries += nodes.len() as u64;
        } else {
            walk.counted.branch_pages += 1;
        }
        check_keys(at, walk.keys, &nodes, kind, lowest, below)?;
        for (index, node) in nodes.iter().enumerate() {
            if kind == BRANCH {
                // The first key of a branch stands for all that is lower.
                let lowest = if index == 0 { lowest } else { Some(node.key) };
                let below = nodes.get(index + 1).map(|next| next.key).or(below);
                self.walk(walk, node.child, depth - 1, lowest, below)?;
                continue;
            }
            if let Some((first, length)) = node.big {
                walk.counted.overflow_pages += self.overflow(first, length)?;
            }
            (walk.visit)(self, at, node)?;
        }
        Ok(())
    }

    /// Visits a run of overflow pages, and returns how many they are. It may be longer than its data needs.
    fn overflow(&mut self, first: u64, length: usize) -> Result<u64, Finding> {
        self.visit_used(first)?;
        let head = self.read(first, 0, PAGE_HEAD)?;
        let pages = u64::from(word(&head[12..]));
        let needed = (PAGE_HEAD - 1 + length) / self.page_bytes + 1;
        if number(&head) != first || short(&head[10..]) != OVERFLOW || pages < needed as u64 {
            return wrong(first, "it is another page than one of a long value");
        }
        (first + 1..first.saturating_add(pages)).try_for_each(|page| self.visit_used(page))?;
        if self.depth == Depth::All {
            (first..first + pages).try_for_each(|page| self.read(page, 0, PAGE_HEAD).map(drop))?;
        }
        Ok(pages)
    }

    fn visit_used(&mut self, page: u64) -> Result<(), Finding> {
        if page >= self.in_file {
            return wrong(page, "the file ends before it");
        }
        self.visit(page, "it is used twice")
    }

    /// Takes note that a page was reached, which happens once.
    fn visit(&mut self, page: u64, twice: &str) -> Result<(), Finding> {
        let index = usize::try_from(page).ok().filter(|_| page >= FIRST_PAGE);
        let seen = index.and_then(|index| self.seen.get_mut(index));
        match seen.map(|seen| std::mem::replace(seen, true)) {
            Some(false) => Ok(()),
            Some(true) => wrong(page, twice),
            None => wrong(page, "there is no such page"),
        }
    }

    /// Reads from a page that was visited, and perhaps from those after it.
    fn read(&mut self, page: u64, skip: usize, length: usize) -> Result<Vec<u8>, Finding> {
        self.file.seek(SeekFrom::Start(page * self.page_bytes as u64 + skip as u64))?;
        let mut bytes = vec![0; length];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The flags of a table are those that it was made with.
    fn plain_flags(&self, page: u64, tree: &[u8], expected: u16) -> Result<(), Finding> {
        let (pad, flags) = (word(tree), short(&tree[4..]));
        if pad == 0 && flags == expected { Ok(()) } else { wrong(page, "unknown flags of a table") }
    }
}

/// The nodes of a page, in the order of their offsets' list.
fn nodes(at: u64, page: &[u8], kind: u16) -> Result<Vec<Node<'_>>, Finding> {
    let (lower, upper) = (usize::from(short(&page[12..])), usize::from(short(&page[14..])));
    // A page of 64 KiB says 0.
    let upper = if upper == 0 { page.len() } else { upper };
    let is_sane = lower > PAGE_HEAD && lower % 2 == 0 && lower <= upper && upper <= page.len();
    if !is_sane {
        return wrong(at, "its bounds make no sense");
    }
    let mut nodes = Vec::with_capacity((lower - PAGE_HEAD) / 2);
    let mut places = Vec::with_capacity(nodes.capacity());
    for offset in page[PAGE_HEAD..lower].chunks_exact(2) {
        let start = usize::from(short(offset));
        let bytes = page.get(start..).filter(|it| start >= upper && it.len() >= NODE_HEAD);
        let node = bytes.and_then(|bytes| node(bytes, kind));
        let Some((node, length)) = node else { return wrong(at, "a node lies beyond it") };
        nodes.push(node);
        places.push(start..start + length);
    }
    places.sort_by_key(|place| place.start);
    match places.windows(2).all(|pair| pair[0].end <= pair[1].start) {
        true => Ok(nodes),
        false => wrong(at, "its nodes overlap"),
    }
}

/// A node, and how many bytes it takes, if they are there.
fn node(bytes: &[u8], kind: u16) -> Option<(Node<'_>, usize)> {
    let (size, flags, key_bytes) = (word(bytes), short(&bytes[4..]), short(&bytes[6..]));
    let key = bytes.get(NODE_HEAD..NODE_HEAD + usize::from(key_bytes))?;
    let data = &bytes[NODE_HEAD + key.len()..];
    let (length, big) = match (kind, flags) {
        (BRANCH, _) => (0, None),
        (_, BIG) => (8, Some((number(data.get(..8)?), size as usize))),
        (_, 0 | TREE) => (size as usize, None),
        _ => return None,
    };
    let child = u64::from(size) | u64::from(flags) << 32;
    let node = Node { key, flags, data: data.get(..length)?, big, child };
    Some((node, NODE_HEAD + key.len() + length))
}

fn check_keys(
    at: u64,
    keys: Keys,
    nodes: &[Node<'_>],
    kind: u16,
    lowest: Option<&[u8]>,
    below: Option<&[u8]>,
) -> Result<(), Finding> {
    // The first key of a branch is not looked at by anybody.
    let compared = &nodes[usize::from(kind == BRANCH)..];
    if matches!(keys, Keys::Integers) && compared.iter().any(|node| node.key.len() != 8) {
        return wrong(at, "a key is no number");
    }
    let rise = |pair: &[Node<'_>]| keys.compare(pair[0].key, pair[1].key).is_lt();
    let within = |node: &Node<'_>| {
        lowest.is_none_or(|lowest| keys.compare(lowest, node.key).is_le())
            && below.is_none_or(|below| keys.compare(node.key, below).is_lt())
    };
    match compared.windows(2).all(rise) && compared.iter().all(within) {
        true => Ok(()),
        false => wrong(at, "its keys are out of order"),
    }
}

/// A list of free pages: how many, and which, falling.
fn check_free(page: u64, list: &[u8]) -> Result<(), Finding> {
    let count = list.get(..8).map(number);
    let count = count.filter(|count| *count < list.len() as u64 / 8);
    let Some(count) = count else { return wrong(page, "a list of free pages is cut off") };
    let pages: Vec<u64> = list.chunks_exact(8).skip(1).take(count as usize).map(number).collect();
    match pages.windows(2).all(|pair| pair[0] > pair[1]) {
        true => Ok(()),
        false => wrong(page, "a list of free pages is out of order"),
    }
}

/// The number at the front of `bytes`, which are known to be that many.
fn number(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(*bytes.first_chunk().expect("the caller has looked at the length"))
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(*bytes.first_chunk().expect("the caller has looked at the length"))
}

fn short(bytes: &[u8]) -> u16 {
    u16::from_ne_bytes(*bytes.first_chunk().expect("the caller has looked at the length"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lmdb::{Env, Options, Sync, close, open};
    use heed::types::Bytes;
    use heed::{CommitOrAbort, Database};
    use std::ops::Bound;
    use std::time::Duration;

    const OPTIONS: Options =
        Options { map_bytes: 256 << 20, tables: 2, readers: 8, sync: Sync::Never };

    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % sides
        }
    }

    fn tables(env: &Env) -> [Database<'static, Bytes, Bytes>; 2] {
        let made = env.create_databases_and_commit(env.write_txn().unwrap(), |opener, txn| {
            let first = opener.create_database(txn, Some("first"))?;
            let second = opener.create_database(txn, Some("second"))?;
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit([first, second]))
        });
        made.unwrap().unwrap_commit()
    }

    /// Puts and deletes rows of all sizes, many at once, so that pages split, merge, and are used again.
    fn change(env: &Env, tables: &[Database<'static, Bytes, Bytes>; 2], dice: &mut Dice) {
        let mut txn = env.write_txn().unwrap();
        for _ in 0..dice.roll(200) {
            let table = &tables[dice.roll(2) as usize];
            let key = vec![b'k'; 1 + dice.roll(400) as usize];
            let key = [&dice.roll(3000).to_be_bytes()[..], &key].concat();
            match dice.roll(20) {
                0..12 => {
                    let length = [10, 100, 300, 2000, 20_000][dice.roll(5) as usize];
                    let value = vec![7; dice.roll(length) as usize];
                    table.put(&mut txn, &key, &value).unwrap();
                }
                12..19 => {
                    let next = table.get_greater_than_or_equal_to(&txn, &key).unwrap();
                    if let Some(key) = next.map(|(key, _)| key.to_vec()) {
                        table.delete(&mut txn, &key).unwrap();
                    }
                }
                _ => {
                    let end = [&key[..], &[0xff]].concat();
                    let range = (Bound::Included(&key[..7]), Bound::Excluded(&end[..]));
                    table.delete_range(&mut txn, &range).unwrap();
                }
            }
        }
        txn.commit().unwrap();
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "a test says its seed")]
    fn whatever_lmdb_writes_is_believed_and_no_damage_ends_the_audit_in_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("data.mdb");
        let seed = u64::from(std::process::id()) | 1;
        println!("seed {seed}");
        let mut dice = Dice(seed);
        for round in 0..6 {
            let env = open(folder.path(), OPTIONS).unwrap();
            let tables = tables(&env);
            // What a reader holds is not used again meanwhile, which makes lists of free pages long.
            let reader = (round % 3 == 0).then(|| env.clone().static_read_txn().unwrap());
            for _ in 0..20 {
                change(&env, &tables, &mut dice);
            }
            if round == 2 {
                let mut txn = env.write_txn().unwrap();
                tables.iter().for_each(|table| table.clear(&mut txn).unwrap());
                txn.commit().unwrap();
            }
            drop(reader);
            assert!(close(env, Duration::from_secs(5)));
            audit(&file, Depth::Small).unwrap();
        }
        let whole = std::fs::read(&file).unwrap();
        assert!(whole.len() > 1 << 20, "{} bytes are no test", whole.len());
        let mut found = 0;
        for flip in 0..400 {
            let pages = whole.len() as u64 / 4096;
            let head = if flip % 8 == 0 { 4096 } else { 40 };
            let at = (dice.roll(pages) * 4096 + dice.roll(head)) as usize;
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << dice.roll(8);
            std::fs::write(&file, &damaged).unwrap();
            found += usize::from(audit(&file, Depth::Small).is_err());
        }
        assert!(found > 0, "none of 400 flips was found");
        // One that was cut off.
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        audit(&file, Depth::Small).unwrap_err();
        std::fs::write(&file, &whole[..100]).unwrap();
        audit(&file, Depth::Small).unwrap();
        std::fs::write(&file, whole).unwrap();
        audit(&file, Depth::Small).unwrap();
    }
}
