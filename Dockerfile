# Two images from one file:
#   docker build -t tunegate .                      CPU
#   docker build --target cuda -t tunegate:cuda .   NVIDIA (compiles; see the README for what was run)
# The steps are scripts, which CI runs as well.

FROM rust:1.95-slim-bookworm AS builder
WORKDIR /build
COPY scripts/docker scripts/docker
RUN scripts/docker/install-build-tools
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
RUN scripts/docker/build-release /build/out

FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS cuda-builder
WORKDIR /build
COPY scripts/docker scripts/docker
RUN scripts/docker/install-build-tools
COPY --from=rust:1.95-slim-bookworm /usr/local/rustup /usr/local/rustup
COPY --from=rust:1.95-slim-bookworm /usr/local/cargo /usr/local/cargo
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:$PATH
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
ARG CUDA_COMPUTE_CAP=80
# flash-attn instead of cuda: paged attention by candle-flash-attn, which needs compute capability 8.0.
ARG FEATURES=cuda
RUN CUDA_COMPUTE_CAP="$CUDA_COMPUTE_CAP" scripts/docker/build-release /build/out --features "$FEATURES"

FROM nvidia/cuda:13.0.2-runtime-ubuntu24.04 AS cuda
COPY --from=cuda-builder /build/out/tunegate /usr/local/bin/tunegate
COPY scripts/docker/make-user /tmp/make-user
RUN /tmp/make-user
USER 65532:65532
WORKDIR /data
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["tunegate"]
CMD ["serve", "/models", "--host", "0.0.0.0", "--data-dir", "/data", "--device", "cuda"]

FROM debian:bookworm-slim AS cpu
COPY --from=builder /build/out/tunegate /usr/local/bin/tunegate
COPY scripts/docker/make-user /tmp/make-user
RUN /tmp/make-user
USER 65532:65532
WORKDIR /data
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["tunegate"]
CMD ["serve", "/models", "--host", "0.0.0.0", "--data-dir", "/data"]
