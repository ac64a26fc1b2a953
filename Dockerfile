# syntax=docker/dockerfile:1
# The worker alone: no sandbox, no tests. Build with `docker build -t kyc-worker .`

FROM rust:1.94-bookworm AS build
WORKDIR /src
COPY . .
# The caches outlive a build: after a change of ours, dependencies are not compiled again.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --no-default-features --bin kyc-worker \
    && cp target/release/kyc-worker /usr/local/bin/kyc-worker

FROM debian:bookworm-slim
# TLS to the provider, RabbitMQ and PostgreSQL trusts the system's certificates.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/kyc-worker /usr/local/bin/kyc-worker
# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
# In the exec form: the worker is process 1 and gets its signals itself.
ENTRYPOINT ["/usr/local/bin/kyc-worker"]
CMD ["run"]
