//! Tensor names of a transformer's blocks in a model file, as data. Every family has a table; the loader
//! reads by it.

/// Names of the tensors of a block, without `.weight` and `.bias`. Names of parts that a family
/// does not have stay empty.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    /// Path of the blocks, which a block's number and a dot follow.
    pub(crate) blocks: &'static str,
    /// Biases by distance that all blocks share.
    pub(crate) relative_bias: &'static str,
    /// Norm before attention; with [`Post`](super::NormPlacement::Post), of the sum after it.
    pub(crate) attention_norm: &'static str,
    pub(crate) qkv: QkvNames,
    pub(crate) query_norm: &'static str,
    pub(crate) key_norm: &'static str,
    /// Scores of the attention sinks, a whole tensor name.
    pub(crate) sinks: &'static str,
    /// Vectors of distances.
    pub(crate) distance_vectors: &'static str,
    pub(crate) out_proj: &'static str,
    /// Factors on the attention's output, a whole tensor name (layer scale).
    pub(crate) attention_scale: Option<&'static str>,
    /// Norm of the attention's output.
    pub(crate) attention_output_norm: &'static str,
    pub(crate) cross_attention: CrossNames,
    pub(crate) delta_net: DeltaNetNames,
    pub(crate) streams: StreamNames,
    /// Norm before the feed-forward network; with [`Post`](super::NormPlacement::Post), of the sum after it.
    pub(crate) feed_forward_norm: &'static str,
    /// Path of the feed-forward network, with a dot at its end.
    pub(crate) feed_forward: &'static str,
    /// Names on that path.
    pub(crate) up: UpNames,
    pub(crate) down: &'static str,
    /// Factors on the feed-forward network's output, a whole tensor name (layer scale).
    pub(crate) feed_forward_scale: Option<&'static str>,
    /// Norm of the feed-forward network's output.
    pub(crate) feed_forward_output_norm: &'static str,
    /// The layer that picks experts.
    pub(crate) router: &'static str,
    pub(crate) experts: ExpertNames,
    /// Path of the expert that sees every token, with a dot at its end, and the layer that weighs it.
    pub(crate) shared_expert: &'static str,
    pub(crate) shared_gate: &'static str,
}

/// Names of the query, key and value projections.
#[derive(Debug, Clone, Copy)]
pub(crate) enum QkvNames {
    Separate([&'static str; 3]),
    /// One tensor with the rows of the query first, then those of key and value.
    Fused(&'static str),
}

/// Names of the projections into the feed-forward network.
#[derive(Debug, Clone, Copy)]
pub(crate) enum UpNames {
    /// The only projection of a network without a gate.
    Dense(&'static str),
    Separate {
        gate: &'static str,
        up: &'static str,
    },
    /// One tensor, the gate's rows first.
    GateUp(&'static str),
    /// One tensor, the gate's rows last.
    UpGate(&'static str),
    /// One tensor, a row of the gate and a row of the other in turn.
    Interleaved(&'static str),
}

/// Names of the experts' tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ExpertNames {
    /// Path of the experts, which an expert's number and a dot follow; the names on it are those of `up` and
    /// `down`.
    Numbered(&'static str),
    /// As [`Numbered`](Self::Numbered), or, in a file that has them, two tensors with the matrices of all experts one
    /// after another, output by output, the gates' before the others.
    NumberedOrStacked { numbered: &'static str, gate_up: &'static str, down: &'static str },
    /// Tensors that have the matrices of all experts one after another.
    Stacked {
        up: UpNames,
        up_order: MatrixOrder,
        down: &'static str,
        down_order: MatrixOrder,
        /// Bias on the sum of dense experts, a whole tensor name.
        bias: &'static str,
    },
}

/// Order of the numbers of a matrix in a tensor that has several. Quantised ones lie by outputs, whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatrixOrder {
    /// Output by output, `(out, in)`.
    Outputs,
    /// Input by input, `(in, out)`.
    Inputs,
}

/// Names of a cross-attention's tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CrossNames {
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) out_proj: &'static str,
    pub(crate) norm: &'static str,
}

/// Names of a gated delta net's tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeltaNetNames {
    pub(crate) inputs: DeltaNetInputs,
    pub(crate) form: DeltaNetForm,
    pub(crate) convolution: &'static str,
    /// Rates of decay, a whole tensor name.
    pub(crate) log_rates: &'static str,
    /// Bias of the decays, a whole tensor name.
    pub(crate) decay_bias: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) out_proj: &'static str,
}

/// How a file has the numbers of a gated delta net that are no matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeltaNetForm {
    /// Logarithms of the rates, and the convolution's weights as `(channels, 1, taps)`.
    Transformers,
    /// The rates less than 0, and the weights as `(channels, taps)`.
    Gguf,
}

/// Names of the projections into a gated delta net.
#[derive(Debug, Clone, Copy)]
pub(crate) enum DeltaNetInputs {
    /// Two tensors, in which the rows of each key head lie together with those of its value heads.
    Grouped {
        /// Query, key, values and output gates.
        qkvz: &'static str,
        /// Betas and decays.
        ba: &'static str,
    },
    /// Queries, keys and values of all heads; output gates; and betas and decays, those of each key head together.
    GroupedGates { qkv: &'static str, z: &'static str, ba: &'static str },
    /// Queries, keys and values of all heads, output gates, betas and decays.
    Separate { qkv: &'static str, z: &'static str, b: &'static str, a: &'static str },
}

/// Names of what a model with several residual streams has before and after its blocks, and in them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamNames {
    /// Paths of the projections to the streams after the first, and back, which a number follows.
    pub(crate) embed: &'static str,
    pub(crate) unembed: &'static str,
    /// Projection of embeddings to the inputs of all blocks, and its norm.
    pub(crate) inputs: &'static str,
    pub(crate) inputs_norm: &'static str,
    pub(crate) router_norm: &'static str,
    pub(crate) router: &'static str,
    pub(crate) prediction: &'static str,
    pub(crate) correction: &'static str,
    /// Factors on the stream that a block's input is weighed by, a whole tensor name.
    pub(crate) output_scale: &'static str,
    pub(crate) laurel_down: &'static str,
    pub(crate) laurel_up: &'static str,
    pub(crate) laurel_norm: &'static str,
    /// Gate, projection and norm of a block's input.
    pub(crate) gate: &'static str,
    pub(crate) projection: &'static str,
    pub(crate) norm: &'static str,
}

impl StreamNames {
    const NONE: Self = Self {
        embed: "",
        unembed: "",
        inputs: "",
        inputs_norm: "",
        router_norm: "",
        router: "",
        prediction: "",
        correction: "",
        output_scale: "",
        laurel_down: "",
        laurel_up: "",
        laurel_norm: "",
        gate: "",
        projection: "",
        norm: "",
    };
}

impl Names {
    /// No names, from which a family's table starts.
    pub(crate) const NONE: Self = Self {
        blocks: "",
        relative_bias: "",
        attention_norm: "",
        qkv: QkvNames::Fused(""),
        query_norm: "",
        key_norm: "",
        sinks: "",
        distance_vectors: "",
        out_proj: "",
        attention_scale: None,
        attention_output_norm: "",
        cross_attention: CrossNames { query: "", key: "", value: "", out_proj: "", norm: "" },
        delta_net: DeltaNetNames {
            inputs: DeltaNetInputs::Grouped { qkvz: "", ba: "" },
            form: DeltaNetForm::Transformers,
            convolution: "",
            log_rates: "",
            decay_bias: "",
            norm: "",
            out_proj: "",
        },
        streams: StreamNames::NONE,
        feed_forward_norm: "",
        feed_forward: "",
        up: UpNames::Dense(""),
        down: "",
        feed_forward_scale: None,
        feed_forward_output_norm: "",
        router: "",
        experts: ExpertNames::Numbered(""),
        shared_expert: "",
        shared_gate: "",
    };
}

/// True for tensors that repeat what the configuration says, numbers of positions and frequencies of rotary positions, and
/// for those of what is not quantised here: activations and caches.
pub(crate) fn is_buffer(tensor: &str) -> bool {
    let last = tensor.rsplit('.').next().unwrap_or(tensor);
    let positions = ["position_ids", "inv_freq", "cos_cached", "sin_cached"];
    positions.contains(&last) || ["input_scale", "activation_scale", "k_scale", "v_scale"].contains(&last)
}

/// True for the tensors of the layer `name`, which is empty where there is none.
pub(crate) fn is_tensor_of(name: &str, tensor: &str) -> bool {
    let ending = tensor.strip_prefix(name).filter(|_| !name.is_empty());
    ending.is_some_and(|ending| ["", ".weight", ".bias", ".gamma", ".beta"].contains(&ending))
}
