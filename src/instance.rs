//! Which process this is: so named that no other is taken for it, be it one of its name, on a host
//! of the same name, or with the process id that it had.

use std::{fs, io};

use crate::config::host_name;

/// The name of a process that runs here: host and process id for people, then what tells it from any
/// other that had both.
///
/// # Errors
/// When there is no such process, or `/proc` does not say.
pub fn instance(pid: u32) -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let namespace = fs::read_link("/proc/self/ns/pid")?;
    let namespace: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name, in parentheses, may hold anything (man 5 proc, "starttime" is field 22).
    let started = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19));
    let started = started.ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has too few fields")))?;
    Ok(format!("{}/{pid}/{}.{namespace}.{started}", host_name(), boot.trim()))
}

/// Whether the process of this name runs here now.
pub fn runs_here(name: &str) -> bool {
    let pid = name.split('/').nth(1).and_then(|pid| pid.parse().ok());
    pid.and_then(|pid| instance(pid).ok()).is_some_and(|running| running == name)
}

/// Host and process id of a process: what people need to find it.
pub fn place(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_and_not_by_its_id_alone() {
        let pid = std::process::id();
        let own = instance(pid).expect("/proc says it");
        assert!(runs_here(&own));
        assert_eq!(place(&own), format!("{}/{pid}", host_name()));
        for other in [format!("{own}0"), own.replace(&host_name(), "another"), String::new()] {
            assert!(!runs_here(&other), "{other}");
        }
        let mut child = std::process::Command::new("true").spawn().expect("it runs");
        let name = instance(child.id()).expect("a process that was not waited for is there");
        assert!(runs_here(&name));
        child.wait().expect("it ends");
        assert!(!runs_here(&name));
    }
}
