# What CI runs.
ci:
    .ci/run

# The tests alone.
test:
    cargo test --workspace

# What it costs.
bench:
    cargo bench --bench dispatch
    cargo bench --bench embedding
    cargo bench --bench models
    cargo run --release -p model-actors --features testing --example simulate -- --seeds 20000
    cargo run --release --example soak -- --requests 20000 --seed 1
