//! What cannot be run here names nothing that the product does not have: every command
//! line, variable and file in the image, compose, Kubernetes and the documents.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::CommandFactory as _;
use dollarpe_sandbox::Settings;
use kyc_worker::cli;
use serde_json::Value;

use crate::alerts::sections;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn yaml(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

const KUBERNETES: &str = "deploy/kubernetes";
const MONITORING: &str = "deploy/kubernetes/components/monitoring";
const CONSOLE: &str = "deploy/kubernetes/components/console";
const DASHBOARDS: &str = "deploy/monitoring/dashboards";

/// The files of a directory, by their names.
fn files(directory: &str) -> Vec<String> {
    let files = fs::read_dir(path(directory)).expect("the directory");
    files.map(|file| file.expect("a file").file_name().into_string().expect("UTF-8")).collect()
}

/// Every document of every file of a directory.
fn manifests(directory: &str) -> Vec<Value> {
    let yamls = files(directory).into_iter().filter(|name| name.ends_with(".yaml"));
    yamls.flat_map(|name| yaml(&format!("{directory}/{name}"))).collect()
}

#[track_caller]
fn of_kind<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    let mut found = manifests.iter().filter(|manifest| manifest["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    first
}

/// What KEDA asks the database for.
pub(crate) fn query_of_scaler() -> String {
    let manifests = manifests(KUBERNETES);
    let triggers = &of_kind(&manifests, "ScaledObject")["spec"]["triggers"];
    let trigger =
        triggers.as_array().expect("triggers").iter().find(|trigger| trigger["type"] == "postgresql");
    trigger.expect("one that asks the database")["metadata"]["query"].as_str().expect("a query").to_owned()
}

/// Every value under `key`, wherever it is.
fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get(key));
            members.values().for_each(|member| all(member, key, found));
        }
        Value::Array(items) => items.iter().for_each(|item| all(item, key, found)),
        _ => {}
    }
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().unwrap_or_else(|| panic!("{value} is no list"));
    items.iter().map(|item| item.as_str().expect("a text").to_owned()).collect()
}

/// Fails unless the worker understands the arguments.
#[track_caller]
fn understands(arguments: &[String]) {
    let mut command = cli::command();
    // What a command needs is not what this is about, but whether it knows what it is given.
    let parsed = command
        .try_get_matches_from_mut(["kyc-worker"].into_iter().chain(arguments.iter().map(String::as_str)));
    if let Err(error) = parsed {
        use clap::error::ErrorKind::{DisplayHelp, DisplayVersion, MissingRequiredArgument};
        let is_known = matches!(error.kind(), DisplayHelp | DisplayVersion | MissingRequiredArgument);
        assert!(is_known, "kyc-worker {arguments:?}: {error}");
    }
}

fn variables_of(command: &clap::Command) -> BTreeSet<String> {
    let variables = command.get_arguments().filter_map(|arg| arg.get_env());
    variables.map(|variable| variable.to_str().expect("UTF-8").to_owned()).collect()
}

/// The variables of a command's settings.
fn settings_of(name: &str) -> BTreeSet<String> {
    variables_of(cli::command().find_subcommand(name).expect("a command"))
}

/// The variables of the worker's settings.
fn settings() -> BTreeSet<String> {
    settings_of("run")
}

fn sandbox_settings() -> BTreeSet<String> {
    #[derive(clap::Parser)]
    struct Sandbox {
        #[command(flatten)]
        _settings: Settings,
    }
    variables_of(&Sandbox::command())
}

fn default_of(variable: &str) -> Duration {
    let command = cli::command();
    let run = command.find_subcommand("run").expect("a command `run`");
    let arg = run.get_arguments().find(|arg| arg.get_env().is_some_and(|env| env == variable));
    let value = arg.expect("a setting").get_default_values()[0].to_str().expect("UTF-8");
    humantime::parse_duration(value).expect("a duration")
}

#[track_caller]
fn are_known(names: impl IntoIterator<Item = String>, known: &BTreeSet<String>) {
    let unknown: Vec<String> = names.into_iter().filter(|name| !known.contains(name)).collect();
    assert!(unknown.is_empty(), "no such variables: {unknown:?}");
}

#[test]
fn the_image_runs_commands_that_exist_and_is_made_of_files_that_exist() {
    let text = read("Dockerfile").replace("\\\n", " ");
    let ignored = read(".dockerignore");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let last = |keyword: &str| -> Vec<String> {
        let line = lines.iter().rfind(|line| line.starts_with(keyword)).expect(keyword);
        serde_json::from_str(&line[line.find('[').expect("the exec form")..]).expect("the exec form")
    };
    let health = lines.iter().find(|line| line.starts_with("HEALTHCHECK")).expect("a health check");
    let health: Vec<String> =
        serde_json::from_str(&health[health.find('[').expect("the exec form")..]).expect("JSON");
    assert_eq!(last("ENTRYPOINT"), ["/usr/local/bin/kyc-worker"]);
    assert_eq!(health[0], "/usr/local/bin/kyc-worker");
    understands(&last("CMD"));
    understands(&health[1..]);
    let manifest = read("Cargo.toml");
    for bin in text.split("--bin ").skip(1).map(|rest| rest.split_whitespace().next().expect("a name")) {
        assert!(manifest.contains(&format!("[[bin]]\nname = \"{bin}\"")), "{bin}");
    }
    for kept in ignored.lines().filter_map(|line| line.strip_prefix('!')) {
        assert!(path(kept).exists(), ".dockerignore keeps {kept}, which is not there");
    }
    // What the compiler reads beside src is in the image's context.
    for needed in ["Cargo.toml", "Cargo.lock", "askama.toml", ".cargo", ".sqlx", "migrations", "src"] {
        assert!(
            ignored.contains(&format!("!{needed}\n")) || ignored.ends_with(&format!("!{needed}")),
            "{needed}"
        );
    }
    let rust_version =
        manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).expect("a version");
    assert!(text.contains(&format!("FROM rust:{}-", rust_version.trim_matches('"'))), "{rust_version}");
}

#[test]
fn compose_names_variables_commands_and_secrets_that_exist() {
    let compose = &yaml("compose.yaml")[0];
    let services = compose["services"].as_object().expect("services");
    let environment = |service: &str| {
        let members = services[service]["environment"].as_object().expect("a map").clone();
        members.into_iter().map(|(name, _)| name)
    };
    for service in ["migrate", "worker"] {
        understands(&texts(&services[service]["command"]));
        are_known(environment(service), &settings());
    }
    are_known(environment("sandbox"), &sandbox_settings());
    understands(&texts(&services["console"]["command"]));
    are_known(environment("console"), &settings_of("console"));
    for (name, secret) in compose["secrets"].as_object().expect("secrets") {
        let file = secret["file"].as_str().expect("a file");
        assert!(path(file).exists(), "{name}: {file}");
        // As whoever runs in the container, who is not the owner of the file here.
        let used = format!("/run/secrets/{name}");
        assert!(read("compose.yaml").contains(&used), "{used} is used nowhere");
    }
    let grace = services["worker"]["stop_grace_period"].as_str().expect("a duration");
    let grace = humantime::parse_duration(grace).expect("a duration");
    assert!(grace >= default_of("SHUTDOWN_GRACE") + Duration::from_secs(5));
}

#[test]
fn compose_mounts_files_that_exist_and_watches_its_own_workers() {
    let compose = &yaml("compose.yaml")[0];
    let services = compose["services"].as_object().expect("services");
    let mounts: Vec<String> = services
        .values()
        .flat_map(|service| {
            service["volumes"].as_array().map(|_| texts(&service["volumes"])).unwrap_or_default()
        })
        .collect();
    let mut bound = 0;
    for mount in &mounts {
        let (from, _) = mount.split_once(':').expect("a source");
        if let Some(file) = from.strip_prefix("./") {
            assert!(path(file).exists(), "{file}");
            bound += 1;
        }
    }
    assert!(bound > 5, "{mounts:?}");
    let command = texts(&services["prometheus"]["command"]);
    assert!(command.contains(&"--enable-feature=exemplar-storage".to_owned()), "{command:?}");
    let scraped = &yaml("deploy/monitoring/prometheus.yaml")[0]["scrape_configs"][0]["dns_sd_configs"][0];
    let listens = services["worker"]["environment"]["METRICS_LISTEN"].as_str().expect("an address");
    assert_eq!(listens, format!("0.0.0.0:{}", scraped["port"]));
    assert!(texts(&scraped["names"]).iter().all(|name| services.contains_key(name)), "{scraped}");

    // Grafana: its data sources are other services, and its dashboards are mounted where it looks.
    let grafana = &yaml("deploy/monitoring/grafana.yaml")[0];
    for source in grafana["datasources"].as_array().expect("data sources") {
        let url = source["url"].as_str().expect("a URL").trim_start_matches("http://");
        assert!(services.contains_key(url.split(':').next().expect("a host")), "{url}");
    }
    let shown = grafana["providers"][0]["options"]["path"].as_str().expect("a path");
    assert!(mounts.contains(&format!("./{DASHBOARDS}:{shown}:ro")), "{mounts:?}");
    let login = grafana["datasources"][1]["user"].as_str().expect("a login");
    assert!(read("deploy/compose/auditor.sql").contains(&format!("create role {login} login")), "{login}");
}

/// In a container the console cannot be on loopback: so it asks its proxy for a secret, and nothing but the
/// proxy is published.
#[test]
fn compose_publishes_the_console_by_its_proxy_alone() {
    let compose = &yaml("compose.yaml")[0];
    let (console, proxy) = (&compose["services"]["console"], &compose["services"]["console-proxy"]);
    assert!(console["ports"].is_null() && console["network_mode"].is_null(), "{console}");
    let environment = &console["environment"];
    assert_eq!(environment["CONSOLE_LOGIN"], "proxy");
    let configuration = read("deploy/compose/console.conf");
    let listens = environment["CONSOLE_LISTEN"].as_str().and_then(|address| address.split_once(':'));
    let (_, port) = listens.expect("an address");
    assert!(configuration.contains(&format!("proxy_pass http://console:{port};")), "{configuration}");
    let secret = read("deploy/compose/console-proxy-secret");
    let sent = format!("proxy_set_header X-Console-Secret {};", secret.trim());
    assert!(configuration.contains(&sent), "{configuration}");

    let published = texts(&proxy["ports"]);
    let [published] = &published[..] else { panic!("{published:?}") };
    let (outside, inside) = published.rsplit_once(':').expect("two ports");
    assert!(configuration.contains(&format!("listen {inside};")), "{configuration}");
    let public = environment["CONSOLE_PUBLIC_URL"].as_str().expect("a URL");
    assert_eq!(outside.strip_prefix("127.0.0.1:"), public.strip_prefix("http://localhost:"), "{outside}");

    let url: url::Url = read("deploy/compose/console-database-url").trim().parse().expect("a URL");
    let (user, password) = (url.username(), url.password().expect("a password"));
    let login = format!("create role {user} login password '{password}' in role kyc_desk;");
    assert!(read("deploy/compose/console.sql").contains(&login), "{login}");
}

#[test]
fn kubernetes_names_variables_commands_secrets_and_files_that_exist() {
    const SECRETS: &str = "/run/secrets/kyc-worker/";
    let manifests = manifests(KUBERNETES);
    let documents = read("docs/deployment.md");
    let (mut variables, mut graces, mut secrets) = (Vec::new(), Vec::new(), Vec::new());
    for manifest in &manifests {
        let [mut args, mut commands, mut env] = [Vec::new(), Vec::new(), Vec::new()];
        all(manifest, "args", &mut args);
        all(manifest, "command", &mut commands);
        all(manifest, "env", &mut env);
        all(manifest, "terminationGracePeriodSeconds", &mut graces);
        all(manifest, "secretName", &mut secrets);
        args.iter().for_each(|args| understands(&texts(args)));
        for command in commands {
            let command = texts(command);
            assert_eq!(command[0], "/usr/local/bin/kyc-worker");
            understands(&command[1..]);
        }
        for entry in env.into_iter().flat_map(|env| env.as_array().expect("a list")) {
            variables.push(entry["name"].as_str().expect("a name").to_owned());
            let secret = entry["value"].as_str().and_then(|value| value.strip_prefix(SECRETS));
            if let Some(secret) = secret {
                assert!(documents.contains(&format!("`{secret}`")), "docs/deployment.md: {secret}");
            }
        }
    }
    let of_scaler = manifests.iter().filter(|manifest| manifest["kind"] == "TriggerAuthentication");
    secrets.extend(of_scaler.map(|manifest| &manifest["spec"]["secretTargetRef"][0]["name"]));
    let secrets: BTreeSet<&str> = secrets.into_iter().map(|name| name.as_str().expect("a name")).collect();
    assert_eq!(secrets.len(), 3, "the migration's and the scaler's are their own: {secrets:?}");
    for secret in secrets {
        assert!(
            documents.contains(&format!("create secret generic {secret} ")),
            "docs/deployment.md: {secret}"
        );
    }
    let file = read("deploy/kubernetes/settings.env");
    let lines = file.lines().filter(|line| !line.starts_with('#'));
    variables.extend(lines.map(|line| line.split('=').next().expect("a name").to_owned()));
    assert!(variables.len() > 8, "{variables:?}");
    are_known(variables, &settings());
    let port = file.lines().find_map(|line| line.strip_prefix("METRICS_LISTEN=0.0.0.0:"));
    let port: u64 = port.expect("metrics are on").parse().expect("a port");
    let mut probes = Vec::new();
    manifests.iter().for_each(|manifest| all(manifest, "httpGet", &mut probes));
    let paths: Vec<&str> = probes.iter().map(|probe| probe["path"].as_str().expect("a path")).collect();
    assert_eq!(paths, ["/livez", "/readyz"]);
    let mut ports = Vec::new();
    manifests.iter().for_each(|manifest| all(manifest, "containerPort", &mut ports));
    assert!(ports.iter().all(|found| found.as_u64() == Some(port)) && ports.len() == 1, "{ports:?}");
    let graces: Vec<u64> = graces.iter().map(|grace| grace.as_u64().expect("seconds")).collect();
    assert_eq!(graces.len(), 1);
    assert!(Duration::from_secs(graces[0]) >= default_of("SHUTDOWN_GRACE") + Duration::from_secs(5));

    let kustomization = of_kind(&manifests, "Kustomization");
    for resource in texts(&kustomization["resources"]) {
        assert!(path(KUBERNETES).join(&resource).exists(), "{resource}");
    }
    let tag = kustomization["images"][0]["newTag"].as_str().expect("a tag");
    assert_eq!(tag, env!("CARGO_PKG_VERSION"));
}

#[test]
fn kubernetes_scales_by_the_queue_while_jobs_are_taken_and_lets_nodes_be_drained() {
    let manifests = manifests(KUBERNETES);
    let scaled = &of_kind(&manifests, "ScaledObject")["spec"];
    let workers = of_kind(&manifests, "Deployment");
    assert_eq!(scaled["scaleTargetRef"]["name"], workers["metadata"]["name"]);
    assert!(workers["spec"]["replicas"].is_null(), "an apply would undo what KEDA has counted");
    let triggers = scaled["triggers"].as_array().expect("triggers");
    let names: Vec<&str> = triggers.iter().map(|trigger| trigger["name"].as_str().expect("a name")).collect();
    let formula = scaled["advanced"]["scalingModifiers"]["formula"].as_str().expect("a formula");
    let variables = formula.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    assert_eq!(variables.collect::<BTreeSet<_>>(), names.iter().copied().collect(), "{formula}");
    assert_eq!(triggers[0]["metadata"]["queueName"], crate::harness::JOBS);
    for trigger in triggers {
        let is_its = |manifest: &&Value| {
            manifest["kind"] == "TriggerAuthentication"
                && manifest["metadata"]["name"] == trigger["authenticationRef"]["name"]
        };
        assert!(manifests.iter().any(|manifest| is_its(&manifest)), "{trigger}");
    }
    let budget = &of_kind(&manifests, "PodDisruptionBudget")["spec"];
    assert_eq!(budget["unhealthyPodEvictionPolicy"], "AlwaysAllow", "no paused replica is ready");
    assert_eq!(budget["selector"], workers["spec"]["selector"]);
}

#[test]
fn kubernetes_monitoring_scrapes_the_workers_and_has_every_dashboard() {
    let (base, component) = (manifests(KUBERNETES), manifests(MONITORING));
    let workers = of_kind(&base, "Deployment");
    let port = &workers["spec"]["template"]["spec"]["containers"][0]["ports"][0];
    let monitor = &of_kind(&component, "PodMonitor")["spec"];
    assert_eq!(monitor["selector"], workers["spec"]["selector"]);
    assert_eq!(monitor["podMetricsEndpoints"][0]["port"], port["name"]);
    let policy = &of_kind(&component, "NetworkPolicy")["spec"];
    assert_eq!(policy["podSelector"], workers["spec"]["selector"]);
    assert_eq!(policy["ingress"][0]["ports"][0]["port"], port["containerPort"]);
    let rules = &of_kind(&component, "PrometheusRule")["spec"]["groups"];
    assert_eq!(*rules, yaml("deploy/monitoring/rules.yaml")[0]["groups"]);
    let resources = texts(&of_kind(&component, "Component")["resources"]);
    for file in files(MONITORING).iter().filter(|file| *file != "kustomization.yaml") {
        assert!(resources.contains(file), "{file} is no resource");
    }
    for resource in resources {
        assert!(path(MONITORING).join(&resource).exists(), "{resource}");
    }
    let generated = &yaml(&format!("{DASHBOARDS}/kustomization.yaml"))[0]["configMapGenerator"][0]["files"];
    let mut dashboards = files(DASHBOARDS);
    dashboards.retain(|file| file != "kustomization.yaml");
    assert_eq!(texts(generated).into_iter().collect::<BTreeSet<_>>(), dashboards.into_iter().collect());
}

/// The container of the console's pod that has this name.
fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let containers = pod["containers"].as_array().expect("containers");
    containers.iter().find(|each| each["name"] == name).unwrap_or_else(|| panic!("no container {name}"))
}

/// The variables that the manifest gives the console.
fn environment_of(console: &Value) -> Vec<(&str, &str)> {
    let entries = console["env"].as_array().expect("a list").iter();
    entries
        .map(|entry| (entry["name"].as_str().expect("a name"), entry["value"].as_str().expect("a value")))
        .collect()
}

#[test]
fn kubernetes_has_a_console_that_nobody_reaches_but_by_its_login() {
    let (base, component) = (manifests(KUBERNETES), manifests(CONSOLE));
    let workers = &of_kind(&base, "Deployment")["spec"]["template"]["spec"];
    let deployment = of_kind(&component, "Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"], workers["securityContext"]);
    assert_eq!(pod["automountServiceAccountToken"], false);
    for each in pod["containers"].as_array().expect("containers") {
        assert_eq!(each["securityContext"], workers["containers"][0]["securityContext"], "{}", each["name"]);
    }
    // On loopback, and its proxy proves itself all the same.
    let console = container(pod, "console");
    assert_eq!(console["image"], workers["containers"][0]["image"]);
    understands(&texts(&console["args"]));
    assert!(console["ports"].is_null(), "{console}");
    let environment = environment_of(console);
    for expected in [("CONSOLE_LISTEN", "127.0.0.1:8080"), ("CONSOLE_LOGIN", "proxy")] {
        assert!(environment.contains(&expected), "{environment:?}");
    }
    // Who is let in reaches nginx, and so does the kubelet, which cannot reach loopback.
    let port = &container(pod, "nginx")["ports"][0];
    assert!(read(&format!("{CONSOLE}/console.conf")).contains(&format!("listen {};", port["containerPort"])));
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        let asked = &console[probe]["httpGet"];
        assert_eq!((&asked["path"], &asked["port"]), (&Value::from(path), &port["containerPort"]));
    }
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let service = &of_kind(&component, "Service")["spec"];
    assert_eq!((&service["selector"], &service["ports"][0]["targetPort"]), (labels, &port["name"]));
    let policy = &of_kind(&component, "NetworkPolicy")["spec"];
    assert_eq!(policy["podSelector"]["matchLabels"], *labels);
    let admitted = policy["ingress"].as_array().expect("rules");
    assert_eq!(admitted.len(), 1);
    assert_eq!(
        admitted[0]["ports"],
        serde_json::json!([{ "protocol": "TCP", "port": port["containerPort"] }])
    );
    // The workers' own policy is not about this pod.
    assert_ne!(of_kind(&base, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"], *labels);

    let kustomization = of_kind(&component, "Component");
    assert_eq!(kustomization["images"], of_kind(&base, "Kustomization")["images"]);
    for resource in texts(&kustomization["resources"]) {
        assert!(path(CONSOLE).join(&resource).exists(), "{resource}");
    }
    for file in files(CONSOLE).iter().filter(|file| *file != "kustomization.yaml") {
        assert!(read(&format!("{CONSOLE}/kustomization.yaml")).contains(&format!("- {file}\n")), "{file}");
    }
}

/// What an overlay generates for the console is what its pod asks for, in settings that there are.
#[test]
fn kubernetes_has_the_settings_of_the_console_from_the_overlay_of_the_document() {
    let component = manifests(CONSOLE);
    let pod = &of_kind(&component, "Deployment")["spec"]["template"]["spec"];
    let document = read("docs/console.md");
    let overlay = document.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
    let overlay: Value = serde_saphyr::from_str(overlay.expect("an overlay")).expect("YAML");
    assert!(texts(&overlay["components"])[0].ends_with(CONSOLE), "{overlay}");
    let generated = overlay["configMapGenerator"].as_array().expect("a list");
    let mut asked = Vec::new();
    all(pod, "configMapRef", &mut asked);
    let names = |maps: &[&Value]| maps.iter().map(|map| map["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&generated.iter().collect::<Vec<_>>()), names(&asked));

    let variables = |map: &Value| -> Vec<String> {
        let literals = texts(&map["literals"]);
        literals.iter().map(|literal| literal.split('=').next().expect("a name").to_owned()).collect()
    };
    let given = environment_of(container(pod, "console"));
    let given = given.iter().map(|(name, _)| (*name).to_owned());
    are_known(given.chain(variables(&generated[0])), &settings_of("console"));
    let of_login = variables(&generated[1]);
    assert!(of_login.iter().all(|name| name.starts_with("OAUTH2_PROXY_")), "{of_login:?}");
}

/// Of the secret each container has the keys that it reads, and the document makes them all.
#[test]
fn kubernetes_shows_no_container_of_the_console_more_of_the_secret_than_it_needs() {
    let component = manifests(CONSOLE);
    let pod = &of_kind(&component, "Deployment")["spec"]["template"]["spec"];
    let volumes = pod["volumes"].as_array().expect("volumes");
    let mut mounted = BTreeSet::new();
    for (name, keys) in [
        ("console", &["database-url", "proxy-secret"][..]),
        ("nginx", &["proxy-secret.conf"]),
        ("oauth2-proxy", &["client-secret", "cookie-secret"]),
    ] {
        let mounts = container(pod, name)["volumeMounts"].as_array().expect("mounts");
        let is_its = |volume: &&Value| mounts.iter().any(|mount| mount["name"] == volume["name"]);
        let mut items = Vec::new();
        for volume in volumes.iter().filter(is_its).filter(|volume| !volume["secret"].is_null()) {
            assert_eq!(volume["secret"]["secretName"], "kyc-worker-console", "{name}");
            all(&volume["secret"], "key", &mut items);
        }
        assert_eq!(items, keys, "{name}");
        mounted.extend(keys.iter().copied());
    }
    let document = read("docs/console.md").replace("\\\n", " ");
    let made =
        document.lines().find(|line| line.starts_with("kubectl create secret generic kyc-worker-console "));
    let made = made.expect("a command").split("--from-file=").skip(1);
    let made: BTreeSet<&str> = made.map(|key| key.trim().split('=').next().expect("a key")).collect();
    assert_eq!(made, mounted);
    for (name, file) in environment_of(container(pod, "console")) {
        if name.ends_with("_FILE") {
            let key = file.strip_prefix("/run/secrets/kyc-worker-console/").expect("a file of the secret");
            assert!(mounted.contains(key), "{name}");
        }
    }
}

#[test]
fn the_login_before_the_console_skips_no_address_and_is_what_the_document_has() {
    let component = manifests(CONSOLE);
    let pod = &of_kind(&component, "Deployment")["spec"]["template"]["spec"];
    let arguments = texts(&container(pod, "oauth2-proxy")["args"]);
    // What an address skips, a browser can name in a header.
    assert!(arguments.iter().all(|argument| !argument.contains("skip-auth")), "{arguments:?}");
    let document = read("docs/console.md").replace("\\\n", " ");
    let shown = document.lines().find(|line| line.starts_with("oauth2-proxy ")).expect("its command line");
    let shown = shlex::split(shown).expect("a command line");
    let is_of_a_place = |argument: &&String| {
        ["--http-address=", "--client-secret-file=", "--cookie-secret-file="]
            .iter()
            .any(|name| argument.starts_with(name))
    };
    for argument in arguments.iter().filter(|argument| !is_of_a_place(argument)) {
        assert!(shown.contains(argument), "docs/console.md: oauth2-proxy without {argument}");
    }
}

/// As the documents say and `scripts/test-servers.sh` can be asked for.
const POSTGRES: [&str; 5] = ["14", "15", "16", "17", "18"];

#[test]
fn the_workflow_tests_every_server_that_is_supported() {
    let job = &yaml(".github/workflows/ci.yml")[0]["jobs"]["ci"];
    let pairs = job["strategy"]["matrix"]["include"].as_array().expect("pairs");
    let column =
        |name: &str| pairs.iter().map(|pair| pair[name].as_str().expect("a text")).collect::<Vec<_>>();
    assert_eq!(column("postgres"), POSTGRES);
    let rabbitmqs = column("rabbitmq");
    assert_eq!(
        (rabbitmqs.first(), rabbitmqs.last()),
        (Some(&"3.13"), Some(&"4")),
        "the oldest and the newest"
    );
    let runs: BTreeSet<_> = column("run").into_iter().collect();
    assert_eq!(runs.into_iter().collect::<Vec<_>>(), ["bash .ci/run", "make test"]);
    for service in ["postgres", "rabbitmq"] {
        let image = job["services"][service]["image"].as_str().expect("an image");
        assert!(image.contains(&format!("${{{{ matrix.{service} }}}}")), "{image}");
    }
    assert!(read("README.md").contains("PostgreSQL 14 to 18, and RabbitMQ 3.13 and 4.x"));
    assert!(read("scripts/test-servers.sh").contains(&format!("--postgres {}]", POSTGRES.join("|"))));
}

#[test]
fn the_workflow_tries_compose_with_commands_services_and_files_that_exist() {
    let workflow = &yaml(".github/workflows/ci.yml")[0];
    let steps = workflow["jobs"]["image"]["steps"].as_array().expect("steps");
    let compose = &yaml("compose.yaml")[0];
    let mut count = 0;
    for line in steps.iter().filter_map(|step| step["run"].as_str()).flat_map(str::lines) {
        if let Some(rest) = line.split("docker compose ").nth(1) {
            let words = shlex::split(rest.trim_end_matches("; }")).expect("a command line");
            assert_eq!(words[0], "--profile");
            let of_profile = |service: &Value| service["profiles"][0] == words[1];
            let services = compose["services"].as_object().expect("services");
            assert!(services.values().any(of_profile), "no profile {}", words[1]);
            if words[2] == "run" {
                let service = &words[words.len() - 2];
                assert!(services.contains_key(service), "no service {service}");
            }
        }
        let Some(line) = line.strip_prefix("worker ") else { continue };
        if let Some((_, file)) = line.split_once('<') {
            assert!(path(file).exists(), "{file}");
        }
        let line = line.split(['<', '|']).next().expect("a first part");
        understands(&shlex::split(line).expect("a command line"));
        count += 1;
    }
    assert!(count >= 4, "only {count} command lines were found");
}

/// The documents that people read.
fn documents() -> Vec<String> {
    let mut names: Vec<String> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned).into();
    for file in fs::read_dir(path("docs")).expect("docs") {
        let name = file.expect("a file").file_name().into_string().expect("UTF-8");
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    names
}

#[test]
fn every_command_line_in_the_documents_is_understood() {
    let mut count = 0;
    for name in documents() {
        let text = read(&name).replace("\\\n", " ");
        let blocks = text.split("```").skip(1).step_by(2).flat_map(str::lines);
        let spans = text.split('`').skip(1).step_by(2).filter(|span| !span.contains('\n'));
        for line in blocks.chain(spans) {
            let Some((_, line)) = line.rsplit_once("kyc-worker ") else { continue };
            let line = line.split([';', '|', '>', '#', '&']).next().expect("a first part");
            let Some(words) = shlex::split(line) else { continue };
            let is_command = |word: &String| cli::command().find_subcommand(word).is_some();
            if !words.first().is_some_and(is_command) {
                continue;
            }
            // Words in capitals stand for a value.
            let words: Vec<String> = words
                .into_iter()
                .map(|word| match word.as_str() {
                    "JOB_ID" | "ID" => "3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11".to_owned(),
                    "SHELL" => "bash".to_owned(),
                    _ => word,
                })
                .collect();
            if words.len() > 1 {
                understands(&words);
                count += 1;
            }
        }
    }
    assert!(count >= 5, "only {count} command lines were found");
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for name in documents() {
        let text = read(&name);
        let directory = path(&name).parent().expect("a directory").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = directory.join(file);
            assert!(target.exists(), "{name} links to {link}, which is not there");
            if !anchor.is_empty() {
                let target = fs::read_to_string(&target).expect("a document");
                let has = sections(&target).contains(anchor);
                assert!(has, "{name}: no heading {anchor} in {file}");
            }
        }
    }
}

#[test]
fn every_target_of_make_and_every_script_that_is_named_exists() {
    let makefile = read("Makefile");
    for name in documents().into_iter().chain([".github/workflows/ci.yml".to_owned(), "Makefile".to_owned()])
    {
        let text = read(&name);
        for script in text.split("scripts/").skip(1).filter_map(|rest| rest.split(".sh").next()) {
            if script.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
                assert!(path(&format!("scripts/{script}.sh")).exists(), "{name}: scripts/{script}.sh");
            }
        }
        for target in text
            .split("`make ")
            .skip(1)
            .filter_map(|rest| rest.split(|c| c != '-' && !char::is_lowercase(c)).next())
        {
            assert!(makefile.contains(&format!("\n{target}:")), "{name}: make {target}");
        }
    }
}
