//! Servers of a test's own, which it may stop, kill and fill up. They listen on free
//! ports, live in a temporary directory and end with the test.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A server that has not come up by then does not.
const BOOT_TIME_MAX: Duration = Duration::from_secs(120);

/// A PostgreSQL cluster. Not run by root, as Postgres wants it.
pub struct OwnPostgres {
    dir: TempDir,
    port: u16,
    server: Option<Child>,
    settings: Vec<String>,
    disk: Disk,
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
    pub fn start(disk: Disk, settings: &[&str]) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let mut cluster = Self {
            port: free_port(),
            server: None,
            settings: settings.iter().map(ToString::to_string).collect(),
            disk,
            dir,
        };
        for name in ["data", "wal", "socket"] {
            fs::create_dir(cluster.path(name)).expect("a directory");
        }
        if is_root() {
            let owner = postgres_user();
            let owned = Command::new("chown").arg("-R").arg(owner).arg(cluster.dir.path()).status();
            assert!(owned.expect("chown runs").success(), "cannot give a directory to {owner}");
        }
        cluster.boot(true);
        cluster
    }

    /// The URL of its first database, as its owner.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Ends it at once, without a word to its clients, as a crash does.
    pub fn crash(&mut self) {
        self.end("QUIT");
    }

    /// Ends it in good order: its clients are told.
    pub fn stop(&mut self) {
        self.end("INT");
    }

    /// Starts it again.
    pub fn start_again(&mut self) {
        self.boot(false);
    }

    /// A file on its disk.
    pub fn path_on_disk(&self, name: &str) -> String {
        self.path("data").join(name).display().to_string()
    }

    /// Writes a file into its data directory, as its owner alone may read it.
    pub fn write_file(&self, name: &str, text: &str) {
        let path = self.path("data").join(name);
        let owner = fs::metadata(self.path("data")).expect("the data directory").uid();
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permissions");
        chown(&path, Some(owner), None).expect("the cluster's owner");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn end(&mut self, signal: &str) {
        let Some(mut server) = self.server.take() else { return };
        send(signal, server.id());
        server.wait().expect("the server can be waited for");
    }

    /// One process from the first: the small disk is in its own namespace and goes with it.
    fn boot(&mut self, is_first: bool) {
        let [data, wal, socket] = ["data", "wal", "socket"].map(|name| self.path(name).display().to_string());
        let bin = postgres_bin();
        let bin = bin.display();
        let mut script = String::from("set -e; ");
        if let Disk::Small(mib) = self.disk {
            assert!(is_first, "a small disk goes with its server");
            script += &format!("mount -t tmpfs -o size={mib}m,mode=700 tmpfs {data}; ");
            if is_root() {
                script += &format!("chown {} {data}; ", postgres_user());
            }
        }
        let drop_root = match is_root() {
            true => format!("setpriv --reuid={0} --regid={0} --clear-groups ", postgres_user()),
            false => String::new(),
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
            "exec {drop_root}{bin}/postgres -D {data} -p {} -k {socket} -c listen_addresses=127.0.0.1 -c fsync=off",
            self.port
        );
        for setting in &self.settings {
            script += &format!(" -c {setting}");
        }
        let mut command = match self.disk {
            Disk::Ample => Command::new("sh"),
            Disk::Small(_) => {
                let mut command = Command::new("unshare");
                if !is_root() {
                    // Whoever we are may mount what only he sees.
                    command.args(["--user", "--map-current-user", "--keep-caps"]);
                }
                command.args(["--mount", "sh"]);
                command
            }
        };
        command.args(["-c", &script]).current_dir("/");
        let log = self.path("log");
        self.server = Some(spawn(command, &log));
        let answers = || {
            let ready = Command::new(postgres_bin().join("pg_isready"))
                .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
                .status();
            ready.expect("pg_isready runs").success()
        };
        wait_for_boot("PostgreSQL", &log, answers);
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        self.crash();
    }
}

/// A RabbitMQ node with a name, ports, data and an epmd of its own.
pub struct OwnRabbit {
    dir: TempDir,
    ports: [u16; 3],
    epmd: Child,
    server: Option<Child>,
}

impl OwnRabbit {
    /// Starts a node whose application `rabbit` is configured so, in Erlang's words.
    pub fn start(configuration: &str) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let ports = [free_port(), free_port(), free_port()];
        fs::write(dir.path().join("plugins"), "[].").expect("a file");
        fs::write(dir.path().join("rabbitmq.conf"), "").expect("a file");
        fs::write(dir.path().join("advanced.config"), format!("[{{rabbit, [{configuration}]}}].\n"))
            .expect("a file");
        let mut epmd = Command::new("epmd");
        epmd.args(["-address", "127.0.0.1", "-port", &ports[2].to_string()]);
        let epmd = spawn(epmd, &dir.path().join("epmd.log"));
        let mut node = Self { dir, ports, epmd, server: None };
        node.start_again();
        node
    }

    /// Its URL, for the vhost that it is made with.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.ports[0])
    }

    /// Has it take no messages, as when its memory is used up; or take them again.
    pub fn set_memory_alarm(&self, is_set: bool) {
        let [port, _, epmd_port] = self.ports.map(|port| port.to_string());
        let watermark: &[&str] = if is_set { &["absolute", "1000"] } else { &["0.9"] };
        let set = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl")
            .env("HOME", self.dir.path())
            .env("ERL_EPMD_PORT", epmd_port)
            .args(["-n", &format!("kyc{port}@localhost"), "set_vm_memory_high_watermark"])
            .args(watermark)
            .output()
            .expect("rabbitmqctl runs");
        assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    }

    /// Ends it in good order: its clients are told.
    pub fn stop(&mut self) {
        self.end("TERM");
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        self.end("KILL");
    }

    /// Starts it again.
    pub fn start_again(&mut self) {
        let [port, dist_port, epmd_port] = self.ports.map(|port| port.to_string());
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmq-server");
        command.current_dir(self.dir.path()).envs([
            ("HOME", at("")),
            ("RABBITMQ_NODENAME", format!("kyc{port}@localhost")),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", port),
            ("RABBITMQ_DIST_PORT", dist_port),
            ("ERL_EPMD_PORT", epmd_port),
            ("RABBITMQ_MNESIA_BASE", at("data")),
            ("RABBITMQ_LOG_BASE", at("log")),
            ("RABBITMQ_LOGS", "-".to_owned()),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_CONFIG_FILE", at("rabbitmq")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", at("advanced.config")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins")),
            ("RABBITMQ_PID_FILE", at("pid")),
        ]);
        let log = self.dir.path().join("server.log");
        self.server = Some(spawn(command, &log));
        let address = SocketAddr::from(([127, 0, 0, 1], self.ports[0]));
        wait_for_boot("RabbitMQ", &log, || {
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
        });
    }

    fn end(&mut self, signal: &str) {
        let Some(mut server) = self.server.take() else { return };
        // What we started is a script; the node is what it wrote down.
        match fs::read_to_string(self.dir.path().join("pid")) {
            Ok(pid) => send(signal, pid.trim().parse().expect("a number")),
            Err(_never_came_up) => server.kill().expect("the script can be killed"),
        }
        server.wait().expect("the server can be waited for");
    }
}

impl Drop for OwnRabbit {
    fn drop(&mut self) {
        self.kill();
        let _gone_already = self.epmd.kill();
        let _reaped = self.epmd.wait();
    }
}

fn spawn(mut command: Command, log: &Path) -> Child {
    let log = fs::File::options().create(true).append(true).open(log).expect("a log file");
    let out = log.try_clone().expect("a log file");
    let program = command.get_program().display().to_string();
    command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{program} does not start ({error}); is its package installed?"))
}

fn wait_for_boot(what: &str, log: &Path, answers: impl Fn() -> bool) {
    let deadline = Instant::now() + BOOT_TIME_MAX;
    while !answers() {
        assert!(
            Instant::now() < deadline,
            "{what} did not come up: {}",
            fs::read_to_string(log).unwrap_or_default()
        );
        #[expect(clippy::disallowed_methods, reason = "no runtime here")]
        thread::sleep(Duration::from_millis(50));
    }
}

fn send(signal: &str, process: u32) {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(process.to_string()).status();
    assert!(sent.expect("kill runs").success(), "cannot send SIG{signal}");
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

/// Who runs Postgres when the tests are run by root.
fn postgres_user() -> &'static str {
    let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    match users.lines().any(|line| line.starts_with("postgres:")) {
        true => "postgres",
        false => "nobody",
    }
}

/// Where initdb and postgres are: Debian keeps them out of the way.
fn postgres_bin() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = versions.map(|version| version.path().join("bin"));
    let usual = ["/usr/bin", "/usr/local/bin", "/usr/local/pgsql/bin"].map(PathBuf::from);
    debian
        .chain(usual)
        .find(|bin| bin.join("initdb").exists())
        .expect("this test starts a PostgreSQL of its own and needs initdb; install the package postgresql")
}
