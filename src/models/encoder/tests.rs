//! The encoder on small random weights: packed and alone, in every precision, with every head.

use super::super::testing::{
    HIDDEN, TempDir, Tensors, bert_config, bert_tensors, write_config, write_safetensors,
};
use super::*;
use safetensors::Dtype;
use serde_json::{Value, json};

const MEAN: Head = Head::Embed {
    pooling: Pooling::Mean,
    normalize: true,
    dimension: None,
};

fn load(config: &Value, tensors: &Tensors, head: Head) -> Result<EncoderModel, LoadError> {
    load_in(Compute::F32, config, tensors, head)
}

fn load_in(
    compute: Compute,
    config: &Value,
    tensors: &Tensors,
    head: Head,
) -> Result<EncoderModel, LoadError> {
    let dir = TempDir::new().expect("a temporary directory");
    write_config(dir.path(), config);
    write_safetensors(&dir.path().join("model.safetensors"), tensors);
    EncoderModel::load(
        dir.path(),
        &LoadOptions {
            head,
            quantize: None,
            compute,
        },
        &Device::Cpu,
    )
}

fn values(output: &RowOutput) -> &[f32] {
    match output {
        RowOutput::Embedding(values)
        | RowOutput::Logits(values)
        | RowOutput::TokenLogits { values, .. } => values,
    }
}

fn heads() -> [Head; 5] {
    let embed = |pooling, dimension| Head::Embed {
        pooling,
        normalize: true,
        dimension,
    };
    [
        embed(Pooling::Mean, None),
        embed(Pooling::Cls, Some(5)),
        embed(Pooling::Last, None),
        Head::SequenceClass,
        Head::TokenClass,
    ]
}

/// Runs the rows packed and alone. On the CPU the outputs are equal to the last bit: no sum's
/// order depends on the batch, nor on which rows share a thread.
fn check_batch_against_rows(
    model: &EncoderModel,
    head: &Head,
    rows: &[(Vec<u32>, Vec<u32>)],
) -> Result<(), ForwardError> {
    let mut batch = PackedBatch::new();
    for (tokens, types) in rows {
        batch.push_row(tokens, Some(types));
    }
    let together = model.forward(&batch)?;
    assert_eq!(together.len(), rows.len());
    for ((tokens, types), packed) in rows.iter().zip(&together) {
        let mut single = PackedBatch::new();
        single.push_row(tokens, Some(types));
        let alone = model.forward(&single)?;
        let (a, b) = (values(&alone[0]), values(packed));
        let per_token = if *head == Head::TokenClass {
            tokens.len()
        } else {
            1
        };
        assert_eq!(a.len(), model.output_dim() * per_token);
        assert_eq!(a, b, "{head:?}");
    }
    Ok(())
}

#[test]
fn a_row_in_a_batch_equals_the_row_alone() -> Result<(), Box<dyn std::error::Error>> {
    let rows: Vec<(Vec<u32>, Vec<u32>)> = [1, 7, 70, 33, 2, 16, 49]
        .iter()
        .map(|&len| {
            let ids = |step: u32, bound| (0..len).map(|i| (i * step + len) % bound).collect();
            (ids(17, 50), ids(3, 2))
        })
        .collect();
    for compute in [Compute::F32, Compute::Bf16, Compute::Int8] {
        for head in heads() {
            let model = load_in(
                compute,
                &bert_config(),
                &bert_tensors("bert."),
                head.clone(),
            )?;
            check_batch_against_rows(&model, &head, &rows)?;
        }
    }
    Ok(())
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Result<(), Box<dyn std::error::Error>> {
    // Rows that divide evenly, that don't, and one alone.
    let batches = [vec![40, 38, 41, 37], vec![70, 20, 15], vec![70], vec![5, 6]].map(|lengths| {
        let mut batch = PackedBatch::new();
        for len in lengths {
            let tokens: Vec<u32> = (0..len).map(|i| (i * 17 + len) % 50).collect();
            batch.push_row(&tokens, None);
        }
        batch
    });
    for compute in [Compute::F32, Compute::Bf16, Compute::Int8] {
        for head in heads() {
            let model = load_in(compute, &bert_config(), &bert_tensors(""), head.clone())?;
            for batch in &batches {
                let run = |threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    Ok::<_, Box<dyn std::error::Error>>(pool?.install(|| model.forward(batch))?)
                };
                let alone = run(1)?;
                for threads in [2, 3, 5] {
                    assert_eq!(run(threads)?, alone, "{compute:?} {head:?} {threads}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn dropping_tokens_before_the_head_changes_nothing() -> Result<(), Box<dyn std::error::Error>> {
    let mut model = load(&bert_config(), &bert_tensors(""), Head::SequenceClass)?;
    let mut batch = PackedBatch::new();
    batch.push_row(&[1, 2, 3, 4, 5], None);
    batch.push_row(&[9, 8, 7], None);
    let trimmed = model.forward(&batch)?;
    model.single_token = None;
    for (a, b) in trimmed.iter().zip(&model.forward(&batch)?) {
        for (a, b) in values(a).iter().zip(values(b)) {
            assert!((a - b).abs() < 1e-5);
        }
    }
    Ok(())
}

#[test]
fn prefix_legacy_names_and_half_precision_load_the_same() -> Result<(), LoadError> {
    let plain = bert_tensors("");
    let expected = load(&bert_config(), &plain, Head::SequenceClass)?;
    let mut legacy = Tensors::new();
    for (name, tensor) in plain {
        let name = name
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta");
        let head = name.starts_with("classifier");
        let name = if head { name } else { format!("bert.{name}") };
        legacy.insert(name, tensor);
    }
    legacy.insert("extra".to_owned(), (Dtype::I64, vec![1], vec![0; 8]));
    let model = load(&bert_config(), &legacy, Head::SequenceClass)?;
    assert_eq!(model.unused_tensors(), ["extra"]);
    assert_eq!(model.parameters(), expected.parameters());
    // As f32, and what the last panel of each matrix is padded with.
    let bytes = 4 * model.parameters();
    assert!((bytes..2 * bytes).contains(&model.memory_bytes()));
    assert_eq!(model.labels(), ["a", "b", "c"]);

    let mut batch = PackedBatch::new();
    batch.push_row(&[3, 1, 4, 1, 5], None);
    let run = |model: &EncoderModel| model.forward(&batch).expect("a forward");
    assert_eq!(run(&model), run(&expected));

    for (dtype, tolerance) in [(Dtype::F16, 5e-2), (Dtype::BF16, 0.3)] {
        let mut half = legacy.clone();
        for (kind, _, bytes) in half.values_mut().filter(|t| t.0 == Dtype::F32) {
            *kind = dtype;
            let wide: Vec<f32> = bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect();
            *bytes = wide
                .iter()
                .flat_map(|x| match dtype {
                    Dtype::F16 => half::f16::from_f32(*x).to_le_bytes(),
                    _ => half::bf16::from_f32(*x).to_le_bytes(),
                })
                .collect();
        }
        let narrow = run(&load(&bert_config(), &half, Head::SequenceClass)?);
        for (a, b) in values(&narrow[0]).iter().zip(values(&run(&expected)[0])) {
            assert!((a - b).abs() < tolerance, "{dtype:?}: {a} {b}");
        }
    }
    Ok(())
}

#[test]
fn load_errors_name_the_tensor() {
    let check = |edit: &dyn Fn(&mut Tensors), expected: &[&str]| {
        let mut tensors = bert_tensors("bert.");
        edit(&mut tensors);
        let error = load(&bert_config(), &tensors, Head::SequenceClass).expect_err("refused");
        for part in expected {
            assert!(error.to_string().contains(part), "{error} lacks {part}");
        }
    };
    let name = "bert.encoder.layer.1.attention.self.key.weight";
    check(&|t| drop(t.remove(name)), &[name, "missing"]);
    check(
        &|t| drop(t.remove("classifier.bias")),
        &["classifier.bias", "missing"],
    );
    check(
        &|t| {
            let shape = vec![HIDDEN / 2, HIDDEN];
            let bytes = vec![0; HIDDEN * HIDDEN * 2];
            t.insert(name.to_owned(), (Dtype::F32, shape, bytes));
        },
        &[name, "[12, 24]", "[24, 24]"],
    );
    check(
        &|t| {
            let bytes = vec![0; HIDDEN * HIDDEN];
            t.insert(name.to_owned(), (Dtype::I8, vec![HIDDEN, HIDDEN], bytes));
        },
        &[name, "I8", "F32"],
    );
    check(
        &|t| {
            let tensor = t.get_mut(name).expect("a tensor");
            tensor.2[400..404].copy_from_slice(&f32::NAN.to_le_bytes());
        },
        &[name, "100"],
    );
}

#[test]
fn a_config_that_promises_more_than_the_file_is_refused() {
    let config = |key: &str, value: Value| {
        let mut config = bert_config();
        config[key] = value;
        load(&config, &bert_tensors(""), MEAN)
            .expect_err(key)
            .to_string()
    };
    assert!(config("vocab_size", json!(1 << 24)).contains("word_embeddings"));
    assert!(config("num_hidden_layers", json!(512)).contains("encoder.layer.2."));
    assert!(config("intermediate_size", json!(262_144)).contains("intermediate.dense"));
}

#[test]
fn heads_that_do_not_fit_are_refused() {
    let tensors = bert_tensors("");
    let error = load(&bert_config(), &tensors, Head::PairScore).expect_err("three labels");
    assert!(error.to_string().contains("one label"), "{error}");
    for dimension in [0, HIDDEN + 1] {
        let head = Head::Embed {
            pooling: Pooling::Mean,
            normalize: false,
            dimension: Some(dimension),
        };
        assert!(load(&bert_config(), &tensors, head).is_err());
    }
}

#[test]
fn bad_batches_are_errors_and_an_empty_one_is_not() -> Result<(), LoadError> {
    let model = load(&bert_config(), &bert_tensors(""), MEAN)?;
    let forward = |rows: &[(&[u32], Option<&[u32]>)]| {
        let mut batch = PackedBatch::new();
        for (tokens, types) in rows {
            batch.push_row(tokens, *types);
        }
        model.forward(&batch)
    };
    assert!(forward(&[]).is_ok_and(|outputs| outputs.is_empty()));
    let error = forward(&[(&[1, 2], None), (&[3, 50], None)]);
    assert!(matches!(
        error,
        Err(ForwardError::Token {
            row: 1,
            token: 50,
            ..
        })
    ));
    let error = forward(&[(&[1, u32::MAX], None), (&[3], None)]);
    assert!(matches!(error, Err(ForwardError::Token { row: 0, .. })));
    let error = forward(&[(&[1], None), (&[], None)]);
    assert!(matches!(error, Err(ForwardError::EmptyRow { row: 1 })));
    let error = forward(&[(&[1; 71], None)]);
    assert!(matches!(
        error,
        Err(ForwardError::TooLong {
            len: 71,
            max: 70,
            ..
        })
    ));
    let error = forward(&[(&[1], Some(&[2]))]);
    assert!(matches!(
        error,
        Err(ForwardError::TokenType { type_id: 2, .. })
    ));
    Ok(())
}

#[test]
fn a_model_can_move_to_its_executor_thread() {
    fn is_send<T: Send>() {}
    is_send::<EncoderModel>();
}
