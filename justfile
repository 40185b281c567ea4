# What CI runs.
ci:
    .ci/run

# The tests alone.
test:
    cargo test --workspace

# The figures of README and ARCHITECTURE.
bench:
    cargo bench --bench dispatch
    cargo bench --bench embedding
    cargo run --release -p model-actors --features testing --example simulate -- --seeds 20000
    cargo run --release --example soak -- --requests 20000 --seed 1
