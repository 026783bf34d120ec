//! Bytes on a disk that change while nobody looks.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The file of the log, and that of the state, in a data folder.
pub(crate) fn files(folder: &Path) -> [PathBuf; 2] {
    [log_file(folder), state_file(folder)]
}

pub(crate) fn log_file(folder: &Path) -> PathBuf {
    folder.join("raft/log-00000001")
}

/// The file of the state that counts.
pub(crate) fn state_file(folder: &Path) -> PathBuf {
    let current = fs::read_to_string(folder.join("CURRENT")).unwrap();
    // A checksum follows.
    let name = current.split(' ').next().unwrap();
    folder.join(name).join("data.mdb")
}

/// Flips a bit `skip` bytes behind the beginning of each place where `known` is, and returns how many there are.
///
/// LMDB copies pages when it changes them, so what is in the file more than once is in old pages too.
pub(crate) fn flip(file: &Path, known: &[u8], skip: usize) -> usize {
    let places = find(file, known);
    places.iter().for_each(|at| flip_at(file, at + skip));
    places.len()
}

/// Where `known` is.
pub(crate) fn find(file: &Path, known: &[u8]) -> Vec<usize> {
    let bytes = fs::read(file).unwrap();
    bytes
        .windows(known.len())
        .enumerate()
        .filter(|(_, it)| *it == known)
        .map(|(at, _)| at)
        .collect()
}

/// Flips a bit of one byte. A node that has the file open sees it at once: it reads through the same page cache.
pub(crate) fn flip_at(file: &Path, at: usize) {
    flip_bit(file, at, 6);
}

pub(crate) fn flip_bit(file: &Path, at: usize, bit: usize) {
    let file: File = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], at as u64).unwrap();
}

/// Copies a folder with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}
