//! Hugging Face names for the initializers of the model builder.

/// `model.layers.0.self_attn.q_proj.weight` for `model.layers.0.attn.q_proj.MatMul.weight_Q4` and
/// its kind; names of another build are kept.
pub(super) fn hugging_face(initializer: &str) -> String {
    let (module, kind) = match initializer.split_once(".MatMul") {
        Some((module, _)) => (module, "weight"),
        None => match initializer.split_once(".Add.") {
            Some((module, _)) => (module, "bias"),
            None => {
                let weight = initializer.strip_suffix(".weight");
                (weight.unwrap_or(initializer), if weight.is_some() { "weight" } else { "" })
            }
        },
    };
    let module =
        module.strip_suffix(".layernorm").unwrap_or(module).replace(".attn.", ".self_attn.");
    match (module.ends_with(".final_norm_layernorm"), kind) {
        (true, _) => "model.norm.weight".into(),
        (false, "") => module,
        (false, kind) => format!("{module}.{kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_hugging_face() {
        for (initializer, expected) in [
            ("model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("lm_head.MatMul.weight_Q4", "lm_head.weight"),
            ("lm_head.MatMul.weight_DQ_Q4", "lm_head.weight"),
            (
                "model.layers.1.attn.qkv_proj.MatMul.weight_Q4G32",
                "model.layers.1.self_attn.qkv_proj.weight",
            ),
            ("model.layers.1.attn.q_proj.MatMul.qweight", "model.layers.1.self_attn.q_proj.weight"),
            ("model.layers.1.attn.k_proj.Add.bias", "model.layers.1.self_attn.k_proj.bias"),
            ("model.layers.1.mlp.up_proj.MatMul.weight", "model.layers.1.mlp.up_proj.weight"),
            ("model.layers.1.input_layernorm.weight", "model.layers.1.input_layernorm.weight"),
            (
                "model.layers.1.attn.q_norm.layernorm.weight",
                "model.layers.1.self_attn.q_norm.weight",
            ),
            ("model.layers.2.final_norm_layernorm.weight", "model.norm.weight"),
            ("onnx::MatMul_12", "onnx::MatMul_12"),
            ("", ""),
        ] {
            assert_eq!(hugging_face(initializer), expected, "{initializer}");
        }
    }
}
