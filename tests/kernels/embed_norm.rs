//! `kernels/embed_norm.cu` against `ferry::ops::EmbedNorm`.

use ferry::ops::{EmbedNorm, WordTable};

use super::agreement::{Agreement, Random, cu_seqlens, indices, tensor, values};
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch, Order};

const TOKENS: usize = 4;
const THREADS: u32 = 128;
const VOCABULARY: usize = 50;
const POSITIONS: usize = 80;
const TYPES: usize = 2;

/// Tables and weights of one case, rounded to the kernel's type.
struct Case {
    hidden: usize,
    word: Vec<f32>,
    position: Option<Vec<f32>>,
    token_type: Option<Vec<f32>>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    offset: usize,
}

impl Case {
    fn new(number: Number, hidden: usize, position: bool, types: bool, offset: usize) -> Self {
        let mut random = Random::new(hidden as u64);
        let mut table = |rows: usize| number.round(&random.values(rows * hidden, 1.0));
        Self {
            hidden,
            word: table(VOCABULARY),
            position: position.then(|| table(POSITIONS)),
            token_type: types.then(|| table(TYPES)),
            weight: table(1),
            bias: table(1),
            offset,
        }
    }

    fn op(&self) -> EmbedNorm {
        let table = |values: &[f32]| tensor(values, (values.len() / self.hidden, self.hidden));
        EmbedNorm {
            word: WordTable::Dense(table(&self.word)),
            position: self.position.as_deref().map(table),
            token_type: self.token_type.as_deref().map(table),
            weight: tensor(&self.weight, self.hidden),
            bias: tensor(&self.bias, self.hidden),
            epsilon: 1e-5,
            position_offset: self.offset,
        }
    }

    fn run(
        &self,
        emulator: &Emulator,
        number: Number,
        [tokens, types, ends]: [&[u32]; 3],
        order: Order,
    ) -> Vec<f32> {
        let y = Buffer::output("y", number, tokens.len() * self.hidden);
        let word = Buffer::numbers("word", number, &self.word);
        let table = |name, values: &Option<Vec<f32>>| {
            (values.as_ref()).map(|values| Buffer::numbers(name, number, values))
        };
        let position = table("position", &self.position);
        let token_type = table("type", &self.token_type);
        let weight = Buffer::floats("weight", &self.weight);
        let bias = Buffer::floats("bias", &self.bias);
        let grid = [tokens.len().div_ceil(TOKENS) as u32, 1, 1];
        let (count, rows) = (tokens.len(), ends.len() - 1);
        let tokens = Buffer::indices("token_ids", tokens);
        let types = Buffer::indices("type_ids", types);
        let ends = Buffer::indices("cu_seqlens", ends);
        let sizes = [
            count,
            rows,
            self.hidden,
            VOCABULARY,
            POSITIONS,
            TYPES,
            self.offset,
        ];
        let mut arguments = vec![
            Argument::Buffer(&y),
            Argument::Buffer(&tokens),
            Argument::Buffer(&types),
            Argument::Buffer(&ends),
            Argument::Buffer(&word),
            position.as_ref().map_or(Argument::Null, Argument::Buffer),
            token_type.as_ref().map_or(Argument::Null, Argument::Buffer),
            Argument::Buffer(&weight),
            Argument::Buffer(&bias),
            Argument::F32(1e-5),
        ];
        arguments.extend(sizes.map(|size| Argument::I32(size as i32)));
        let kernel = format!("ferry_embed_norm_{}", number.name());
        emulator.run(&kernel, Launch::new(grid, THREADS), order, &arguments);
        y.to_floats(number)
    }
}

#[test]
fn embed_norm_agrees_with_the_cpu_op() {
    let Some(emulator) = Emulator::of("embed_norm") else {
        return;
    };
    // More rows than a warp has lanes, empty ones among them, and a single token.
    let many: Vec<usize> = [&[1usize; 70][..], &[3, 0, 0, 5]].concat();
    let batches: [&[usize]; 3] = [&[1, 0, 7, 33, 2], &many, &[1]];
    for number in Number::ALL {
        let kernel = format!("ferry_embed_norm_{}", number.name());
        let mut agreement = Agreement::new(&kernel, number, 4e-6, 1.01);
        for (hidden, position, types, offset) in [
            (8, true, true, 0),
            (33, true, false, 2),
            (1, false, true, 0),
            (384, true, true, 0),
            (384, false, false, 0),
            (1040, true, true, 1),
        ] {
            let case = Case::new(number, hidden, position, types, offset);
            for lengths in batches {
                let count = lengths.iter().sum();
                let mut random = Random::new(count as u64);
                let tokens = random.indices(count, VOCABULARY);
                let type_ids = random.indices(count, TYPES);
                let ends = cu_seqlens(lengths);
                let expected = case
                    .op()
                    .apply(&indices(&tokens), &indices(&type_ids), &indices(&ends))
                    .expect("the CPU op runs");
                let inputs = [&tokens[..], &type_ids, &ends];
                let name = format!("{hidden}, {} rows", lengths.len());
                agreement.check(&name, &values(&expected), |order| {
                    case.run(&emulator, number, inputs, order)
                });
            }
        }
    }
}

#[test]
fn embed_norm_makes_a_row_nan_whose_index_is_outside_of_its_table() {
    let Some(emulator) = Emulator::of("embed_norm") else {
        return;
    };
    let case = Case::new(Number::F32, 8, true, true, POSITIONS - 3);
    let tokens = [1, VOCABULARY as u32, 2, 3, u32::MAX, 4];
    let types = [0, 0, TYPES as u32, 0, 0, 1];
    // The fourth token of the first row has no position.
    let ends = [0, 4, 6];
    let inputs = [&tokens[..], &types, &ends];
    let y = case.run(&emulator, Number::F32, inputs, Order::Forward);
    let bad: Vec<bool> = y
        .chunks(8)
        .map(|row| row.iter().all(|x| x.is_nan()))
        .collect();
    assert_eq!(bad, [false, true, true, true, true, false]);
    let good = |row: usize| y[row * 8..][..8].iter().all(|x| x.is_finite());
    assert!(good(0) && good(5));
}
