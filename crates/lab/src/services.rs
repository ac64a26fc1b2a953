//! A PostgreSQL and a RabbitMQ of a program's own, which it may stop, kill and fill up. They listen
//! on free ports, keep their data in a temporary directory, and end with whoever started them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use uuid::Uuid;

use crate::process::{Process, send_signal};

/// A server that has not come up by then does not: a broker is slow to start on a busy machine.
pub const START_TIME_MAX: Duration = Duration::from_secs(120);

/// A directory that goes with its value.
struct Directory(PathBuf);

impl Directory {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("kyc-{}", Uuid::new_v4().simple()));
        fs::create_dir(&path)?;
        // PostgreSQL's own user must get into it.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _best_effort = fs::remove_dir_all(&self.0);
    }
}

/// A PostgreSQL cluster. It does not run as root, which Postgres refuses.
pub struct OwnPostgres {
    port: u16,
    server: Option<Process>,
    settings: Vec<String>,
    disk: Disk,
    // Removed last.
    directory: Directory,
}

/// What the cluster's tables are on.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Disk {
    /// The machine's.
    Ample,
    /// One of so many MiB, seen by the cluster alone. Its log of writes is elsewhere.
    Small(u32),
}

impl OwnPostgres {
    /// Makes a cluster and starts it with `settings`, each `name=value`.
    pub fn start(disk: Disk, settings: &[&str]) -> anyhow::Result<Self> {
        let mut cluster = Self::prepare(disk, settings)?;
        cluster.boot(true)?;
        cluster.wait_until_up()?;
        Ok(cluster)
    }

    fn prepare(disk: Disk, settings: &[&str]) -> anyhow::Result<Self> {
        let directory = Directory::new()?;
        for name in ["data", "wal", "socket"] {
            fs::create_dir(directory.path(name))?;
        }
        if let Some(owner) = in_place_of_root()? {
            let owned = Command::new("chown").arg("-R").arg(owner).arg(&directory.0).status()?;
            ensure!(owned.success(), "cannot give a directory to {owner}");
        }
        let settings = settings.iter().map(ToString::to_string).collect();
        Ok(Self { port: free_port()?, server: None, settings, disk, directory })
    }

    /// Makes a standby that streams from this cluster, and starts it with `settings`.
    pub fn start_standby(&self, settings: &[&str]) -> anyhow::Result<Self> {
        let mut standby = Self::prepare(Disk::Ample, settings)?;
        let [data, wal] = ["data", "wal"].map(|name| standby.directory.text(name));
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
        let port = self.port.to_string();
        let mut copying = as_owner(&postgres_programs()?.join("pg_basebackup"))?;
        copying.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port]);
        copying.args(["-D", &data, "--waldir", &wal, "-R", "-c", "fast", "--no-sync"]);
        let copied = copying.current_dir("/").output()?;
        ensure!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        standby.start_again()?;
        Ok(standby)
    }

    /// Ends being a standby: from now on it takes writes.
    pub fn promote(&self) -> anyhow::Result<()> {
        let mut promoting = as_owner(&postgres_programs()?.join("pg_ctl"))?;
        promoting.args(["promote", "-w", "-D", &self.directory.text("data")]);
        let promoted = promoting.current_dir("/").output()?;
        ensure!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stderr));
        Ok(())
    }

    /// Keeps what it has on its disk now; it must have ended.
    pub fn keep(&self) -> anyhow::Result<()> {
        self.copy("", ".kept")
    }

    /// Puts what was kept in the place of what it has; it must have ended.
    pub fn put_back(&self) -> anyhow::Result<()> {
        for name in ["data", "wal"] {
            fs::remove_dir_all(self.directory.path(name))?;
        }
        self.copy(".kept", "")
    }

    fn copy(&self, from: &str, to: &str) -> anyhow::Result<()> {
        for name in ["data", "wal"] {
            let [from, to] = [from, to].map(|suffix| self.directory.path(&format!("{name}{suffix}")));
            let copied = Command::new("cp").arg("-a").args([from, to]).status()?;
            ensure!(copied.success(), "cannot copy a cluster");
        }
        Ok(())
    }

    /// Where it listens, as a URL names it.
    pub fn place(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL of a database, as the cluster's owner.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The URL of its first database, as its owner.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Ends it at once, without a word to its clients: recovery is left to the next start.
    pub fn crash(&mut self) -> anyhow::Result<()> {
        self.end("QUIT")
    }

    /// Ends it in good order: its clients are told.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.end("INT")
    }

    /// Starts it again, and waits until it is up.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.begin_again()?;
        self.wait_until_up()
    }

    /// Starts it again, and waits for nothing.
    pub fn begin_again(&mut self) -> anyhow::Result<()> {
        self.boot(false)
    }

    /// Whether it answers.
    pub fn is_up(&self) -> bool {
        let port = self.port.to_string();
        let asked = postgres_programs().and_then(|bin| {
            Ok(Command::new(bin.join("pg_isready")).args(["-q", "-h", "127.0.0.1", "-p", &port]).status()?)
        });
        asked.is_ok_and(|status| status.success())
    }

    /// A file on its disk.
    pub fn path_on_disk(&self, name: &str) -> String {
        self.directory.path("data").join(name).display().to_string()
    }

    /// Writes a file into its data directory, as its owner alone may read it.
    pub fn write_file(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let data = self.directory.path("data");
        let path = data.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(chown(&path, Some(fs::metadata(data)?.uid()), None)?)
    }

    fn wait_until_up(&self) -> anyhow::Result<()> {
        wait_until_up("PostgreSQL", &self.directory.path("log"), || self.is_up())
    }

    fn end(&mut self, signal: &str) -> anyhow::Result<()> {
        match self.server.take() {
            Some(server) => server.end(signal),
            None => Ok(()),
        }
    }

    /// One process from the first: the small disk is in its own namespace and goes with it.
    fn boot(&mut self, is_first: bool) -> anyhow::Result<()> {
        let [data, wal, socket] = ["data", "wal", "socket"].map(|name| self.directory.text(name));
        let bin = postgres_programs()?;
        let bin = bin.display();
        let mut script = String::from("set -e; ");
        let user = in_place_of_root()?;
        if let Disk::Small(mib) = self.disk {
            ensure!(is_first, "a small disk goes with its server");
            script += &format!("mount -t tmpfs -o size={mib}m,mode=700 tmpfs {data}; ");
            if let Some(user) = user {
                script += &format!("chown {user} {data}; ");
            }
        }
        let drop_root = match user {
            Some(user) => format!("setpriv --reuid={user} --regid={user} --clear-groups "),
            None => String::new(),
        };
        if is_first {
            script += &format!(
                "{drop_root}{bin}/initdb -U postgres -A trust -E UTF8 --locale=C --no-sync -D {data} -X {wal} >&2; "
            );
            // Used where the settings say ssl=on. Postgres looks for them here.
            script += &format!(
                "{drop_root}openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
                    -keyout {data}/server.key -out {data}/server.crt 2>&1; "
            );
        }
        script += &format!(
            "exec {drop_root}{bin}/postgres -D {data} -p {} -k {socket} -c listen_addresses=127.0.0.1",
            self.port
        );
        for setting in &self.settings {
            script += &format!(" -c {setting}");
        }
        let mut command = match self.disk {
            Disk::Ample => Command::new("sh"),
            Disk::Small(_) => {
                let mut command = Command::new("unshare");
                if user.is_none() {
                    // Whoever we are may mount what only this process sees.
                    command.args(["--user", "--map-current-user", "--keep-caps"]);
                }
                command.args(["--mount", "sh"]);
                command
            }
        };
        command.args(["-c", &script]).current_dir("/");
        self.server = Some(Process::start_logged(command, "PostgreSQL", &self.directory.path("log"))?);
        Ok(())
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        let _best_effort = self.crash();
    }
}

/// What RabbitMQ nodes find each other by: a port mapper (epmd), and a cookie. Started by us, so that no
/// node starts a mapper that outlives it.
struct Mapper {
    port: u16,
    cookie: String,
    _process: Process,
    // Removed last.
    _directory: Directory,
}

impl Mapper {
    fn start() -> anyhow::Result<Arc<Self>> {
        let (directory, port) = (Directory::new()?, free_port()?);
        let mut command = Command::new("epmd");
        command.args(["-address", "127.0.0.1", "-port", &port.to_string()]);
        let process = Process::start_logged(command, "epmd", &directory.path("log"))?;
        let cookie = Uuid::new_v4().simple().to_string();
        Ok(Arc::new(Self { port, cookie, _process: process, _directory: directory }))
    }
}

/// A RabbitMQ node with a name, ports and data of its own.
pub struct OwnRabbit {
    /// For clients, and for other nodes.
    ports: [u16; 2],
    server: Option<Process>,
    mapper: Arc<Mapper>,
    // Removed last.
    directory: Directory,
}

impl OwnRabbit {
    /// Starts a node whose application `rabbit` is configured so, in Erlang's words.
    pub fn start(configuration: &str) -> anyhow::Result<Self> {
        let mut node = Self::begin(Mapper::start()?, configuration, "")?;
        node.wait_until_up()?;
        Ok(node)
    }

    /// Makes what a file of definitions says.
    pub fn import(&self, file: &Path) -> anyhow::Result<()> {
        self.ask("rabbitmqctl", &["import_definitions", &file.display().to_string()]).map(drop)
    }

    /// Starts a node, configured in Erlang's words and by lines of rabbitmq.conf, and waits for nothing.
    fn begin(mapper: Arc<Mapper>, configuration: &str, lines: &str) -> anyhow::Result<Self> {
        let directory = Directory::new()?;
        // Each RabbitMQ comes with it. Its tool for plugins does not find them on every Debian.
        fs::write(directory.path("plugins"), "[rabbitmq_consistent_hash_exchange].")?;
        fs::write(directory.path("rabbitmq.conf"), lines)?;
        let cookie = directory.path(".erlang.cookie");
        fs::write(&cookie, &mapper.cookie)?;
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400))?;
        let mut node = Self { ports: [free_port()?, free_port()?], server: None, mapper, directory };
        node.configure(configuration)?;
        node.begin_again()?;
        Ok(node)
    }

    /// Its name among nodes.
    fn name(&self) -> String {
        format!("kyc{}@localhost", self.ports[0])
    }

    /// Where it takes clients.
    pub fn place(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    /// Has its application `rabbit` configured so, in Erlang's words, from its next start on.
    pub fn configure(&self, configuration: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.directory.path("advanced.config"), format!("[{{rabbit, [{configuration}]}}].\n"))?)
    }

    /// Its URL, for the vhost that it is made with.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.place())
    }

    /// Has it take no messages, as when its memory is used up, until the alarm is dropped. The node itself
    /// watches for that: its tools take as long to start as a client waits for a message to be taken.
    pub fn set_memory_alarm(&self) -> anyhow::Result<MemoryAlarm> {
        let file = self.directory.path("alarm");
        fs::write(&file, "")?;
        let set = "vm_memory_monitor:set_vm_memory_high_watermark";
        let clear = format!(
            "fun Watch() -> case filelib:is_file(\"{}\") of \
               true -> timer:sleep(20), Watch(); \
               false -> {set}(0.9) \
             end end",
            file.display()
        );
        self.ask("rabbitmqctl", &["eval", &format!("{set}({{absolute, 1000}}), spawn({clear}).")])?;
        Ok(MemoryAlarm(file))
    }

    /// Which RabbitMQ it is: the number before the first dot of its version.
    pub fn generation(&self) -> anyhow::Result<u32> {
        let version = self.ask("rabbitmqctl", &["version"])?;
        let generation = version.trim().split('.').next().and_then(|number| number.parse().ok());
        generation.with_context(|| format!("no version of RabbitMQ: {version}"))
    }

    /// Asks one of RabbitMQ's tools about this node. Returns what it prints.
    fn ask(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let asked = Command::new(rabbitmq_program(program)?)
            .env("HOME", &self.directory.0)
            .env("ERL_EPMD_PORT", self.mapper.port.to_string())
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.directory.path("plugins"))
            .args(["--quiet", "-n", &self.name()])
            .args(arguments)
            .output()?;
        ensure!(asked.status.success(), "{program}: {}", String::from_utf8_lossy(&asked.stderr));
        Ok(String::from_utf8(asked.stdout)?)
    }

    /// Stops it where it stands: its ports take connections still, and nothing answers.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal("STOP")
    }

    /// Lets it go on.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        // What we started is a script; the node is what it wrote down.
        send_signal(signal, fs::read_to_string(self.directory.path("pid"))?.trim())
    }

    /// Ends it in good order: its clients are told.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.end("TERM")
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.end("KILL")
    }

    /// Starts it again, and waits until it is up.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.begin_again()?;
        self.wait_until_up()
    }

    /// Starts it again, and waits for nothing.
    pub fn begin_again(&mut self) -> anyhow::Result<()> {
        let [port, distribution_port] = self.ports.map(|port| port.to_string());
        let at = |name: &str| self.directory.text(name);
        // What the last node wrote down is not this one's.
        let _there_is_none_at_first = fs::remove_file(self.directory.path("pid"));
        let mut command = Command::new(rabbitmq_program("rabbitmq-server")?);
        command.current_dir(&self.directory.0).envs([
            ("HOME", at("")),
            ("RABBITMQ_NODENAME", self.name()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", port),
            ("RABBITMQ_DIST_PORT", distribution_port),
            ("ERL_EPMD_PORT", self.mapper.port.to_string()),
            ("RABBITMQ_MNESIA_BASE", at("data")),
            ("RABBITMQ_LOG_BASE", at("log")),
            ("RABBITMQ_LOGS", "-".to_owned()),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_CONFIG_FILE", at("rabbitmq")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", at("advanced.config")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins")),
            ("RABBITMQ_PID_FILE", at("pid")),
            // One core is enough for it, and leaves the others to what is tried. Nodes give up one that
            // hangs after 20 s, and not 60.
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1 -kernel net_ticktime 20".to_owned()),
        ]);
        let log = self.directory.path("server.log");
        self.server = Some(Process::start_logged(command, "RabbitMQ", &log)?);
        Ok(())
    }

    /// Whether it greets who connects: an AMQP frame, and not only an open port.
    pub fn is_up(&self) -> bool {
        let greeted = || -> std::io::Result<bool> {
            let address = SocketAddr::from(([127, 0, 0, 1], self.ports[0]));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"AMQP\0\0\x09\x01")?;
            let mut kind = [0];
            stream.read_exact(&mut kind)?;
            Ok(kind == [1])
        };
        greeted().unwrap_or(false)
    }

    fn wait_until_up(&mut self) -> anyhow::Result<()> {
        wait_until_up("RabbitMQ", &self.directory.path("server.log"), || self.is_up())
    }

    fn end(&mut self, signal: &str) -> anyhow::Result<()> {
        let Some(server) = self.server.take() else { return Ok(()) };
        if !self.directory.path("pid").exists() {
            // It never came up.
            return server.end("KILL");
        }
        self.signal(signal)?;
        server.wait()
    }
}

/// A node's alarm, which ends with it.
pub struct MemoryAlarm(PathBuf);

impl Drop for MemoryAlarm {
    fn drop(&mut self) {
        let _best_effort = fs::remove_file(&self.0);
    }
}

impl Drop for OwnRabbit {
    fn drop(&mut self) {
        let _best_effort = self.kill();
    }
}

/// RabbitMQ nodes that are one broker: with three, every quorum queue has a member on each.
pub struct OwnCluster {
    pub nodes: Vec<OwnRabbit>,
}

impl OwnCluster {
    /// Starts so many nodes, one after the other, as each joins the first.
    pub fn start(count: usize) -> anyhow::Result<Self> {
        let mapper = Mapper::start()?;
        let mut nodes: Vec<OwnRabbit> = Vec::new();
        for _ in 0..count {
            // A node that sees fewer than half of them takes no clients until it sees more again.
            let mut lines = "cluster_partition_handling = pause_minority\n".to_owned();
            if let Some(first) = nodes.first() {
                lines += "cluster_formation.peer_discovery_backend = classic_config\n";
                lines += &format!("cluster_formation.classic_config.nodes.1 = {}\n", first.name());
            }
            let mut node = OwnRabbit::begin(Arc::clone(&mapper), "", &lines)?;
            node.wait_until_up()?;
            nodes.push(node);
        }
        Ok(Self { nodes })
    }

    /// Its URL, which names every node, for the vhost that it is made with.
    pub fn url(&self) -> String {
        let places: Vec<String> = self.nodes.iter().map(OwnRabbit::place).collect();
        format!("amqp://guest:guest@{}/%2f", places.join(","))
    }

    /// Whether every node is up.
    pub fn is_up(&self) -> bool {
        self.nodes.iter().all(OwnRabbit::is_up)
    }

    /// Which node leads a queue. Every node must be up.
    pub fn leader_of(&self, queue: &str) -> anyhow::Result<usize> {
        let listed =
            self.nodes[0].ask("rabbitmqctl", &["list_queues", "--no-table-headers", "name", "leader"])?;
        let leader = listed.lines().find_map(|line| line.strip_prefix(queue)?.strip_prefix('\t'));
        let leader = leader.with_context(|| format!("there is no queue {queue}"))?;
        let at = self.nodes.iter().position(|node| node.name() == leader.trim());
        at.with_context(|| format!("{leader} leads queue {queue}, and is none of ours"))
    }

    /// Blocks until no queue would be without a majority if this node stopped.
    pub fn wait_until_spare(&self, at: usize) -> anyhow::Result<()> {
        self.nodes[at].ask("rabbitmq-upgrade", &["await_online_quorum_plus_one"]).map(drop)
    }

    /// Cuts a node off from all others, which stay connected; its clients are not. The nodes refuse each
    /// other's cookie: what lies between them cannot be taken away without root.
    pub fn cut_off(&self, at: usize) -> anyhow::Result<()> {
        self.between(at, |other| {
            format!("erlang:set_cookie('{other}', cut_off), erlang:disconnect_node('{other}')")
        })
    }

    /// Lets a node that was cut off find the others again.
    pub fn reconnect(&self, at: usize) -> anyhow::Result<()> {
        self.between(at, |other| format!("erlang:set_cookie('{other}', erlang:get_cookie())"))
    }

    fn between(&self, at: usize, act: impl Fn(String) -> String) -> anyhow::Result<()> {
        let others = self.nodes.iter().enumerate().filter(|(number, _)| *number != at);
        let acts: Vec<String> = others.map(|(_, other)| act(other.name())).collect();
        self.nodes[at].ask("rabbitmqctl", &["eval", &format!("{}.", acts.join(", "))]).map(drop)
    }
}

fn wait_until_up(what: &str, log: &Path, is_up: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIME_MAX;
    while !is_up() {
        let said = || fs::read_to_string(log).unwrap_or_default();
        ensure!(Instant::now() < deadline, "{what} did not come up: {}", said());
        #[expect(clippy::disallowed_methods, reason = "no runtime here")]
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A port that nobody listens on, for a moment.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Who runs what refuses to run as root, as PostgreSQL does; nobody else where we are not root.
pub fn in_place_of_root() -> anyhow::Result<Option<&'static str>> {
    let status = fs::read_to_string("/proc/self/status")?;
    if !status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0")) {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    Ok(Some(match users.lines().any(|line| line.starts_with("postgres:")) {
        true => "postgres",
        false => "nobody",
    }))
}

/// A program that runs as the owner of our clusters, and not as root.
fn as_owner(program: &Path) -> anyhow::Result<Command> {
    let Some(owner) = in_place_of_root()? else { return Ok(Command::new(program)) };
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={owner}"), &format!("--regid={owner}"), "--clear-groups"]).arg(program);
    Ok(command)
}

/// Where initdb and postgres are: Debian keeps them out of the way.
fn postgres_programs() -> anyhow::Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = versions.map(|version| version.path().join("bin"));
    find("initdb", debian)
        .context("initdb is missing; install PostgreSQL's server (Debian: apt-get install postgresql)")
}

/// One of RabbitMQ's own scripts: Debian's wrappers in the path know one broker only.
fn rabbitmq_program(name: &str) -> anyhow::Result<PathBuf> {
    let bin = find(name, ["/usr/lib/rabbitmq/bin".into()].into_iter());
    let bin = bin.with_context(|| {
        format!("{name} is missing; install RabbitMQ (Debian: apt-get install rabbitmq-server)")
    })?;
    Ok(bin.join(name))
}

/// Where a program is that an ordinary user's path may not lead to.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let bin = find(name, std::iter::empty());
    Ok(bin
        .with_context(|| format!("{name} is missing; install it (Debian: apt-get install {name})"))?
        .join(name))
}

/// The directory with a program: one of `first`, or where programs usually are.
fn find(program: &str, first: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let usual = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/usr/local/pgsql/bin"];
    first.chain(usual.map(PathBuf::from)).find(|bin| bin.join(program).exists())
}
