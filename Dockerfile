# syntax=docker/dockerfile:1
# Two images: `docker build -t kyc-worker .` makes the worker's, without sandbox and tests;
# `docker build --target sandbox -t dollarpe-sandbox .` makes the simulated provider's.

FROM rust:1.94-bookworm AS source
WORKDIR /src
COPY . .

# The caches outlive a build: after a change of ours, dependencies are not compiled again.
FROM source AS build
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --package kyc-worker \
    && cp target/release/kyc-worker /usr/local/bin/kyc-worker

FROM source AS build-sandbox
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,id=sandbox-target \
    cargo build --locked --release --package dollarpe-sandbox \
    && cp target/release/dollarpe-sandbox /usr/local/bin/dollarpe-sandbox

FROM gcr.io/distroless/cc-debian12:nonroot AS sandbox
COPY --from=build-sandbox /usr/local/bin/dollarpe-sandbox /usr/local/bin/dollarpe-sandbox
USER 65532:65532
EXPOSE 4010
ENTRYPOINT ["/usr/local/bin/dollarpe-sandbox"]
CMD ["--listen", "0.0.0.0:4010"]

# No shell and no package manager: the C library, CA certificates and the worker.
FROM gcr.io/distroless/cc-debian12:nonroot AS worker
COPY --from=build /usr/local/bin/kyc-worker /usr/local/bin/kyc-worker
# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/kyc-worker", "health"]
# In the exec form: the worker is process 1 and gets its signals itself.
ENTRYPOINT ["/usr/local/bin/kyc-worker"]
CMD ["run"]
