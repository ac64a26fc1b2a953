//! Reads `.env`, parses the command line, starts, and gives the exit code.

use std::io::Write as _;
use std::process::ExitCode;

use kyc_worker::config::EnvFile;

fn main() -> ExitCode {
    // It must come before any thread: it writes the environment.
    let env_file = match EnvFile::load(".env") {
        Ok(env_file) => env_file,
        Err(error) => return fail(&format!(".env: {error}")),
    };
    // reqwest panics without it; aws-lc would need a C compiler.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return fail("cannot set up TLS");
    }
    match kyc_worker::runtime() {
        Ok(runtime) => {
            let code = runtime.block_on(kyc_worker::cli::run(&env_file));
            // A name that the resolver does not answer holds a thread for as long as it likes.
            runtime.shutdown_background();
            code
        }
        Err(error) => fail(&format!("cannot start: {error}")),
    }
}

fn fail(reason: &str) -> ExitCode {
    let _nowhere_to_say_it = writeln!(std::io::stderr(), "kyc-worker: {reason}");
    ExitCode::FAILURE
}
