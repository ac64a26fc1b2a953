//! The directory of an archive: files of jobs, one JSON line each, compressed with zstd, and a manifest
//! that names each file with what it holds. A file that the manifest does not name yet is an
//! unfinished run's; one whose name ends in `.partial` was never whole.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::failpoint::{Point, reach};

const MANIFEST: &str = "manifest.jsonl";
const SUFFIX: &str = ".jsonl.zst";
const PARTIAL: &str = ".partial";

/// What stands in an archive's way, and mostly passes by itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Busy(pub String);

/// What the first entry follows.
const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Zstandard's own default: five times faster than it is read from the database.
const LEVEL: i32 = 3;

/// A file, as the manifest names it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Entry {
    pub file: String,
    #[serde(flatten)]
    pub facts: Facts,
    /// The SHA-256 of the line before.
    pub previous: String,
}

impl Entry {
    /// The SHA-256 of its line.
    pub fn digest(&self) -> anyhow::Result<[u8; 32]> {
        Ok(Sha256::digest(serde_json::to_string(self)?).into())
    }
}

/// What a file holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Facts {
    pub jobs: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub first_ended_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_ended_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub first_received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_received_at: OffsetDateTime,
    /// The file's size and its SHA-256.
    pub bytes: u64,
    pub sha256: String,
}

/// A job of a file.
#[derive(Clone, Copy, Debug)]
pub struct WrittenJob {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    /// Of its line.
    pub digest: [u8; 32],
}

/// What a line says of its job first of all.
#[derive(Deserialize)]
struct Line {
    submission: Head,
}

#[derive(Deserialize)]
struct Head {
    job_id: Uuid,
    customer_id: Option<Uuid>,
    #[serde(with = "time::serde::rfc3339")]
    received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    ended_at: OffsetDateTime,
}

/// The directory, for the one run that may write to it.
pub struct Directory {
    path: PathBuf,
    /// The directory itself: locked, and synced after each change of a name.
    handle: File,
    entries: Vec<Entry>,
    /// The SHA-256 of the manifest's last line.
    head: String,
}

impl Directory {
    /// Opens the directory for a run, and makes it where it is not there, for its owner alone: the files
    /// hold customers' ids.
    ///
    /// # Errors
    /// When another run has it, or its manifest was changed.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {
                let parent = path.canonicalize()?.parent().map(File::open);
                parent.transpose()?.map(|parent| parent.sync_all()).transpose()?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("--to: cannot make {name}")),
        }
        let handle = File::open(path).with_context(|| format!("--to: cannot open {name}"))?;
        match handle.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                anyhow::bail!(Busy(format!("another archive writes to {name}; wait for its end")))
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("--to: cannot lock {name}"));
            }
        }
        let (entries, head) = read_manifest(path)?;
        Ok(Self { path: path.to_owned(), handle, entries, head })
    }

    /// The SHA-256 of the manifest's last line, for whoever keeps it elsewhere.
    pub fn head(&self) -> &str {
        &self.head
    }

    /// Removes what an earlier run has not written to its end. No row was removed for it.
    pub fn remove_partials(&self) -> anyhow::Result<()> {
        for name in names(&self.path)?.into_iter().filter(|name| name.ends_with(PARTIAL)) {
            self.remove(&name)?;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The files of an earlier run that was not finished.
    pub fn unlisted(&self) -> anyhow::Result<Vec<String>> {
        unlisted(&self.path, &self.entries)
    }

    /// Begins a file of jobs of a month.
    pub fn begin(&self, month: (i32, time::Month)) -> anyhow::Result<Writer<'_>> {
        let (year, month) = (month.0, u8::from(month.1));
        let numbered = |number: u32| format!("{year:04}-{month:02}-{number:04}{SUFFIX}");
        let names: HashSet<String> = names(&self.path)?.into_iter().collect();
        let name = (1..)
            .map(numbered)
            .find(|name| !names.contains(name) && !self.entries.iter().any(|entry| entry.file == *name));
        Writer::begin(self, name.unwrap_or_default())
    }

    /// Writes a file anew without some of its jobs, of which none was removed; without any job, there is
    /// no file.
    pub fn take_out(&self, name: &str, jobs: &HashSet<Uuid>) -> anyhow::Result<()> {
        let mut writer = Writer::begin(self, name.to_owned())?;
        scan(&self.path, name, |job, line| {
            if !jobs.contains(&job.job_id) {
                writer.push(line)?;
            }
            Ok(())
        })?;
        match writer.jobs {
            0 => {
                writer.discard()?;
                self.remove(name)?;
            }
            _ => drop(writer.finish()?),
        }
        reach(Point::ArchiveRewritten);
        Ok(())
    }

    /// The jobs of a file, in its order.
    pub fn jobs(&self, name: &str) -> anyhow::Result<Vec<WrittenJob>> {
        let mut jobs = Vec::new();
        scan(&self.path, name, |job, _| {
            jobs.push(*job);
            Ok(())
        })?;
        Ok(jobs)
    }

    /// What the manifest is to say of a file; `None` where there is no file.
    pub fn entry(&self, name: &str) -> anyhow::Result<Option<Entry>> {
        if !self.path.join(name).exists() {
            return Ok(None);
        }
        let facts = scan(&self.path, name, |_, _| Ok(()))?;
        Ok(Some(Entry { file: name.to_owned(), facts, previous: self.head.clone() }))
    }

    /// Names a file in the manifest: its run is finished.
    pub fn list(&mut self, entry: Entry) -> anyhow::Result<()> {
        self.head = hex(&entry.digest()?);
        self.entries.push(entry);
        let mut text = String::new();
        for entry in &self.entries {
            text.push_str(&serde_json::to_string(entry)?);
            text.push('\n');
        }
        let path = self.path.join(partial(MANIFEST));
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.with_context(|| format!("cannot write {}", path.display()))?;
        self.rename(MANIFEST)?;
        reach(Point::ArchiveListed);
        Ok(())
    }

    /// Gives a file that is whole its name.
    fn rename(&self, name: &str) -> anyhow::Result<()> {
        let (from, to) = (self.path.join(partial(name)), self.path.join(name));
        fs::rename(&from, &to)
            .and_then(|()| self.handle.sync_all())
            .with_context(|| format!("cannot rename {}", from.display()))
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        fs::remove_file(&path)
            .and_then(|()| self.handle.sync_all())
            .with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// A file that is being written, line by line.
pub struct Writer<'a> {
    directory: &'a Directory,
    name: String,
    encoder: zstd::Encoder<'static, BufWriter<File>>,
    text: Sha256,
    pub jobs: u64,
}

impl<'a> Writer<'a> {
    fn begin(directory: &'a Directory, name: String) -> anyhow::Result<Self> {
        let path = directory.path.join(partial(&name));
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        let mut encoder = zstd::Encoder::new(BufWriter::new(file), LEVEL)?;
        encoder.include_checksum(true)?;
        Ok(Self { directory, name, encoder, text: Sha256::new(), jobs: 0 })
    }

    pub fn push(&mut self, line: &str) -> anyhow::Result<()> {
        self.text.update(line);
        self.text.update("\n");
        self.jobs += 1;
        let written = self.encoder.write_all(line.as_bytes()).and_then(|()| self.encoder.write_all(b"\n"));
        written.with_context(|| format!("cannot write {}", self.name))
    }

    /// Ends the file on the disk, reads it back, and gives it its name.
    ///
    /// # Errors
    /// When what is read is not what was written: then it has no name, and nothing may be removed for it.
    pub fn finish(self) -> anyhow::Result<String> {
        let Self { directory, name, encoder, text, jobs } = self;
        let ended = encoder.finish().and_then(|buffer| {
            let file = buffer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.sync_all()
        });
        ended.with_context(|| format!("cannot write {name}"))?;
        reach(Point::ArchiveWritten);
        let mut read = Sha256::new();
        let facts = scan(&directory.path, &partial(&name), |_, line| {
            read.update(line);
            read.update("\n");
            Ok(())
        })?;
        anyhow::ensure!(
            facts.jobs == jobs && read.finalize() == text.finalize(),
            "{name} reads back as something else than was written; is the disk sound? Nothing was removed"
        );
        directory.rename(&name)?;
        reach(Point::ArchiveNamed);
        Ok(name)
    }

    /// Gives the file up.
    pub fn discard(self) -> anyhow::Result<()> {
        let Self { directory, name, encoder, .. } = self;
        drop(encoder);
        directory.remove(&partial(&name))
    }
}

/// Reads a file to its end, each job with its line, and tells what it holds. The whole of it is in memory,
/// compressed.
fn scan(
    path: &Path,
    name: &str,
    mut each: impl FnMut(&WrittenJob, &str) -> anyhow::Result<()>,
) -> anyhow::Result<Facts> {
    let bytes = fs::read(path.join(name)).with_context(|| format!("cannot read {name}"))?;
    let sha256 = hex(&Sha256::digest(&bytes));
    let damaged = || format!("{name} is damaged");
    let decoder = zstd::Decoder::with_buffer(&*bytes).with_context(damaged)?;
    let mut facts: Option<Facts> = None;
    for (line, number) in BufReader::new(decoder).lines().zip(1..) {
        let line = line.with_context(damaged)?;
        let parsed: Line =
            serde_json::from_str(&line).with_context(|| format!("{name}: line {number} is no job"))?;
        let Head { job_id, customer_id, received_at, ended_at } = parsed.submission;
        let facts = facts.get_or_insert_with(|| Facts {
            jobs: 0,
            first_ended_at: ended_at,
            last_ended_at: ended_at,
            first_received_at: received_at,
            last_received_at: received_at,
            bytes: bytes.len() as u64,
            sha256: sha256.clone(),
        });
        facts.jobs += 1;
        facts.first_ended_at = facts.first_ended_at.min(ended_at);
        facts.last_ended_at = facts.last_ended_at.max(ended_at);
        facts.first_received_at = facts.first_received_at.min(received_at);
        facts.last_received_at = facts.last_received_at.max(received_at);
        let digest = Sha256::digest(&line).into();
        each(&WrittenJob { job_id, customer_id, digest }, &line)?;
    }
    facts.with_context(|| format!("{name} holds no job"))
}

/// The manifest's entries, and the SHA-256 of its last line.
fn read_manifest(path: &Path) -> anyhow::Result<(Vec<Entry>, String)> {
    let mut entries = Vec::new();
    let mut head = BEGINNING.to_owned();
    for (line, number) in manifest_text(path)?.lines().zip(1..) {
        let entry = parse_entry(line).with_context(|| format!("{MANIFEST}: line {number}"))?;
        anyhow::ensure!(
            entry.previous == head,
            "{MANIFEST}: line {number} does not follow the one before; \
             `kyc-worker audit --archive {}` says what was changed",
            path.display()
        );
        head = hex(&Sha256::digest(line));
        entries.push(entry);
    }
    Ok((entries, head))
}

/// An entry, in the very form in which it is written.
fn parse_entry(line: &str) -> anyhow::Result<Entry> {
    let entry: Entry = serde_json::from_str(line).context("is no entry")?;
    anyhow::ensure!(serde_json::to_string(&entry)? == line, "is not as it was written");
    Ok(entry)
}

fn manifest_text(path: &Path) -> anyhow::Result<String> {
    let path = path.join(MANIFEST);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The manifest's entries, for somebody who only reads.
///
/// # Errors
/// When there is no such directory, or the manifest is not what was written.
pub fn entries(path: &Path) -> anyhow::Result<Vec<Entry>> {
    anyhow::ensure!(path.is_dir(), "--archive: {} is no directory", path.display());
    Ok(read_manifest(path)?.0)
}

/// Sees to it that the manifest names every file.
///
/// # Errors
/// When it does not: such a file's jobs may have no rows any more, or have them still.
pub fn check_finished(path: &Path, entries: &[Entry]) -> anyhow::Result<()> {
    match unlisted(path, entries)?.first() {
        None => Ok(()),
        Some(name) => anyhow::bail!(
            "{name} is not in {MANIFEST} of {}: an archive is unfinished; run `kyc-worker archive` again first",
            path.display()
        ),
    }
}

/// The files that the manifest does not name.
fn unlisted(path: &Path, entries: &[Entry]) -> anyhow::Result<Vec<String>> {
    let listed: HashSet<&str> = entries.iter().map(|entry| &*entry.file).collect();
    let names = names(path)?.into_iter();
    Ok(names.filter(|name| name.ends_with(SUFFIX) && !listed.contains(&**name)).collect())
}

/// Compares a manifest with what the database knows of its archive. A run may have ended before it named
/// its last file; the next one does.
///
/// # Errors
/// When the directory is not this database's, or one of them is of another time than the other.
pub fn compare(path: &Path, entries: &[Entry], mut known: HashMap<String, Vec<u8>>) -> anyhow::Result<()> {
    let of = format!("{MANIFEST} of {}", path.display());
    for entry in entries {
        match known.remove(&entry.file) {
            Some(digest) if digest == entry.digest()? => {}
            Some(_) => anyhow::bail!(
                "{of} says of {} something else than when it was archived; take the directory from a copy of it, \
                 if it is this database's at all",
                entry.file
            ),
            None => anyhow::bail!(
                "{of} names {}, which this database has not archived; is it another database's archive, or was the \
                 database restored or failed over to before that run? The runbook says what to do then (Archiving \
                 old jobs)",
                entry.file
            ),
        }
    }
    let is_unfinished = known.len() == 1 && known.keys().all(|file| path.join(file).exists());
    match known.into_keys().min() {
        Some(file) if !is_unfinished => anyhow::bail!(
            "{of} lacks {file}, which this database has archived; is the volume mounted, and is it the right \
             directory?"
        ),
        _ => Ok(()),
    }
}

/// Reads the jobs of a file.
///
/// # Errors
/// When it is not what was written.
pub fn read(
    path: &Path,
    entries: &[Entry],
    name: &str,
    mut each: impl FnMut(&WrittenJob, &str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let facts = scan(path, name, |job, line| each(job, line))?;
    let told = entries.iter().find(|entry| entry.file == name);
    anyhow::ensure!(
        told.is_none_or(|told| told.facts == facts),
        "{name} is not what {MANIFEST} says of it; `kyc-worker audit --archive {}` says more",
        path.display()
    );
    Ok(())
}

/// What is wrong with an archive.
#[derive(Debug, Serialize)]
pub struct Fault {
    pub file: String,
    pub what: String,
    pub remedy: &'static str,
}

/// What an archive was found to be.
#[derive(Debug, Default, Serialize)]
pub struct Verified {
    pub files: u64,
    pub jobs: u64,
    /// The SHA-256 of the manifest's last line: whoever keeps it elsewhere sees that no later entry, and no
    /// whole archive, was made anew.
    pub head: String,
    pub findings: Vec<Fault>,
}

const RESTORE: &str =
    "it was changed by hand, or the disk is not sound; a copy of the archive has it as it was";
const TWICE: &str = "the database was set back to before a run, and archived them again; `archived_job` names the \
    file that counts";
const ADDED: &str = "it was added by hand, or a run of `kyc-worker archive` was interrupted: run it again, and audit \
    then";

/// Verifies the files and their chain, without the database.
///
/// # Errors
/// When the directory cannot be read.
pub fn verify(path: &Path) -> anyhow::Result<Verified> {
    anyhow::ensure!(path.is_dir(), "--archive: {} is no directory", path.display());
    let mut verified = Verified { head: BEGINNING.to_owned(), ..Verified::default() };
    let mut findings = Vec::new();
    let mut tell = |file: &str, what: String, remedy| {
        findings.push(Fault { file: file.to_owned(), what, remedy });
    };
    let mut unlisted: HashSet<String> = names(path)?.into_iter().collect();
    if !unlisted.remove(MANIFEST) {
        tell(MANIFEST, "is missing".to_owned(), RESTORE);
    }
    let mut listed = HashSet::new();
    // Which of the files has a job, by its place among them.
    let mut files: Vec<String> = Vec::new();
    let mut holders: HashMap<Uuid, usize> = HashMap::new();
    for (line, number) in manifest_text(path)?.lines().zip(1..) {
        match parse_entry(line) {
            Ok(entry) => {
                if entry.previous != verified.head {
                    let what = format!("line {number} ({}) does not follow the one before", entry.file);
                    tell(MANIFEST, what, RESTORE);
                }
                verified.files += 1;
                verified.jobs += entry.facts.jobs;
                if !listed.insert(entry.file.clone()) {
                    tell(MANIFEST, format!("line {number} names {} again", entry.file), RESTORE);
                } else if !unlisted.remove(&entry.file) {
                    tell(&entry.file, "is missing".to_owned(), RESTORE);
                } else {
                    let (place, mut again, mut example) = (files.len(), 0_u64, None);
                    files.push(entry.file.clone());
                    let scanned = scan(path, &entry.file, |job, _| {
                        if let Some(other) = holders.insert(job.job_id, place) {
                            again += 1;
                            example.get_or_insert((job.job_id, other));
                        }
                        Ok(())
                    });
                    if let Some((job_id, other)) = example {
                        let what =
                            format!("{again} of its jobs stand twice: {job_id} is in {} too", files[other]);
                        tell(&entry.file, what, TWICE);
                    }
                    match scanned {
                        Ok(facts) if facts == entry.facts => {}
                        Ok(facts) => tell(&entry.file, difference(&facts, &entry.facts), RESTORE),
                        Err(error) => tell(&entry.file, format!("cannot be read: {error:#}"), RESTORE),
                    }
                }
            }
            Err(error) => tell(MANIFEST, format!("line {number} {error:#}"), RESTORE),
        }
        verified.head = hex(&Sha256::digest(line));
    }
    let mut unlisted: Vec<String> = unlisted.into_iter().collect();
    unlisted.sort();
    for name in unlisted {
        tell(&name, format!("is not in {MANIFEST}"), ADDED);
    }
    verified.findings = findings;
    Ok(verified)
}

fn difference(there: &Facts, told: &Facts) -> String {
    match there.sha256 == told.sha256 {
        true => format!(
            "{MANIFEST} tells of {} jobs that ended from {} to {}, and it holds {} from {} to {}",
            told.jobs,
            told.first_ended_at,
            told.last_ended_at,
            there.jobs,
            there.first_ended_at,
            there.last_ended_at
        ),
        false => format!("has the SHA-256 {}, and {MANIFEST} says {}", there.sha256, told.sha256),
    }
}

/// The names of what is in a directory.
fn names(path: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn partial(name: &str) -> String {
    format!("{name}{PARTIAL}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
