# What has to pass before a change lands; CI runs the same. 30 to 70 minutes on 2 cores.
ci:
    .ci/run

# The tests alone.
test:
    cargo test --workspace

# What it costs, as README's table has it.
bench:
    cargo bench --bench dispatch
    cargo bench --bench embedding
    cargo bench --bench models
    cargo bench --features benchmarks --bench kernels

# The longer proofs, which CI has no time for.
proof: proof-simulation proof-soak proof-fuzz

# A million histories of the scheduler in virtual time.
proof-simulation seeds="1000000":
    cargo run --release -p model-actors --features testing --example simulate -- --seeds {{seeds}}

# Random faults on real threads.
proof-soak requests="1000000" seed="1":
    cargo run --release --example soak -- --requests {{requests}} --seed {{seed}}

# Ten minutes for each fuzz target. Needs a nightly compiler and `cargo install cargo-fuzz`.
proof-fuzz seconds="600":
    #!/usr/bin/env bash
    set -euo pipefail
    for path in fuzz/fuzz_targets/*.rs; do
        target=$(basename "$path" .rs)
        mkdir -p "fuzz/corpus/$target"
        cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
            -max_total_time={{seconds}} -rss_limit_mb=2048 -timeout=20
    done

# Known vulnerabilities in dependencies. Needs a network and `cargo install cargo-deny`.
advisories:
    cargo deny check advisories

# Both packages, built from what they contain.
package:
    cargo package --workspace --exclude serve
