# The binary in a small image; its first build takes a while (librdkafka, DataFusion).
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends libssl-dev zlib1g-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /headwater
COPY Cargo.toml Cargo.lock clippy.toml ./
COPY src src
COPY tests tests
COPY benches benches
COPY topologies topologies
COPY docs/openapi.json docs/openapi.json
COPY web/dist web/dist
RUN cargo build --release --locked --features tls --bin headwater

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home headwater && install -d -o headwater /home/headwater/.headwater
COPY --from=build /headwater/target/release/headwater /usr/local/bin/headwater
USER headwater
WORKDIR /home/headwater
ENTRYPOINT ["headwater"]
