# The worker alone: no sandbox, no tests. Build with `docker build -t kyc-worker .`

FROM rust:1.94-bookworm AS build
WORKDIR /src
# Dependencies first, so that a change of ours does not compile them again.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir -p src/bin examples/demo tests/it \
    && echo 'fn main() {}' | tee src/main.rs src/bin/dollarpe-sandbox.rs examples/demo/main.rs tests/it/main.rs >src/lib.rs \
    && cargo build --locked --release --no-default-features --bin kyc-worker \
    && rm -rf src
COPY .sqlx .sqlx
COPY migrations migrations
COPY src src
# The stand-in of above is newer than the sources that replace it.
RUN find src -name '*.rs' -exec touch {} + \
    && cargo build --locked --release --no-default-features --bin kyc-worker

FROM debian:bookworm-slim
# TLS to the provider, RabbitMQ and PostgreSQL trusts the system's certificates.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/kyc-worker /usr/local/bin/kyc-worker
# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
# In the exec form: the worker is process 1 and gets its signals itself.
ENTRYPOINT ["/usr/local/bin/kyc-worker"]
CMD ["run"]
