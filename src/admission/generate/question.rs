//! The name of a question to a model that generates: all that the tokens depend on.

use super::call::GenerateCall;
use crate::{
    cache::{Key, KeyBuilder},
    engine::continuous::SequenceWork,
    text::Constraint,
};

/// The name of the question that `work` answers for `call`; `None` where the answer depends on
/// chance. What only shapes the answer on its way out is no part of it, but the stop texts and
/// whether special tokens are written out are: they decide where the reader stops reading.
pub(super) fn name(call: &GenerateCall, work: &SequenceWork) -> Option<Key> {
    let sampling = &work.sampling;
    if !sampling.is_greedy() && sampling.seed.is_none() {
        return None;
    }
    let mut key = KeyBuilder::new();
    key.ids(&work.prompt)
        .number(u64::from(work.max_new_tokens))
        .number(u64::from(work.score_prompt))
        .ids(&work.stop_tokens)
        .number(u64::from(call.keep_special_tokens))
        .number(call.stop.len() as u64);
    for stop in &call.stop {
        key.text(stop);
    }
    key.real(sampling.temperature)
        .number(if sampling.is_greedy() { 0 } else { work.seed })
        .number(u64::from(sampling.top_k))
        .real(sampling.top_p)
        .real(sampling.min_p)
        .real(sampling.typical_p)
        .real(sampling.repetition_penalty)
        .real(sampling.presence_penalty)
        .real(sampling.frequency_penalty)
        .number(u64::from(sampling.top_logprobs))
        .number(sampling.logit_bias.len() as u64);
    // A map's order is its own; what it says is the same.
    let mut biases = sampling.logit_bias.clone();
    biases.sort_by(|(one, first), (other, second)| one.cmp(other).then(first.total_cmp(second)));
    for (token, bias) in biases {
        key.number(u64::from(token)).real(bias);
    }
    match &call.constraint {
        None => key.number(0),
        Some(Constraint::JsonSchema(schema)) => key.number(1).text(&schema.to_string()),
        Some(Constraint::JsonObject) => key.number(2),
        Some(Constraint::Regex(pattern)) => key.number(3).text(pattern),
        Some(Constraint::Choice(texts)) => {
            key.number(4).number(texts.len() as u64);
            texts.iter().fold(&mut key, |key, text| key.text(text))
        }
        Some(Constraint::Lark(grammar)) => key.number(5).text(grammar),
    };
    Some(key.finish())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{admission::Prompt, generation::SamplingParameters};

    type Change = fn(&mut GenerateCall, &mut SequenceWork);

    fn question(change: Change) -> Option<Key> {
        let mut call = GenerateCall::new("model".to_owned(), Prompt::Tokens(vec![1, 2]));
        let mut work = SequenceWork {
            prompt: vec![1, 2],
            max_new_tokens: 8,
            sampling: SamplingParameters {
                seed: Some(7),
                ..SamplingParameters::default()
            },
            seed: 7,
            stop_tokens: Arc::from([0]),
            constraint: None,
            score_prompt: false,
        };
        change(&mut call, &mut work);
        name(&call, &work)
    }

    #[test]
    fn whatever_may_alter_the_answer_alters_the_name() {
        let changes: [Change; 23] = [
            |_, _| {},
            |_, work| work.prompt = vec![1, 3],
            |_, work| work.max_new_tokens = 9,
            |_, work| work.score_prompt = true,
            |_, work| work.stop_tokens = Arc::from([0, 5]),
            |_, work| work.seed = 8,
            |_, work| work.sampling.temperature = 0.5,
            |_, work| work.sampling.temperature = 0.0,
            |_, work| work.sampling.top_k = 3,
            |_, work| work.sampling.top_p = 0.5,
            |_, work| work.sampling.min_p = 0.5,
            |_, work| work.sampling.typical_p = 0.5,
            |_, work| work.sampling.repetition_penalty = 1.5,
            |_, work| work.sampling.presence_penalty = 0.5,
            |_, work| work.sampling.frequency_penalty = 0.5,
            |_, work| work.sampling.top_logprobs = 2,
            |_, work| work.sampling.logit_bias = vec![(1, 0.5)],
            |call, _| call.stop = vec!["a".to_owned()],
            |call, _| call.stop = vec!["b".to_owned()],
            |call, _| call.keep_special_tokens = true,
            |call, _| call.constraint = Some(Constraint::JsonObject),
            |call, _| call.constraint = Some(Constraint::Regex("a".to_owned())),
            |call, _| call.constraint = Some(Constraint::Lark("a".to_owned())),
        ];
        let names: Vec<Key> = changes.into_iter().filter_map(question).collect();
        assert_eq!(names.len(), changes.len());
        for (at, one) in names.iter().enumerate() {
            for (other, name) in names.iter().enumerate().skip(at + 1) {
                assert_ne!(one, name, "changes {at} and {other}");
            }
        }
    }

    #[test]
    fn chance_has_no_name_and_what_does_not_matter_does_not_alter_it() {
        assert_eq!(question(|_, work| work.sampling.seed = None), None);
        let greedy: Change = |_, work| work.sampling.temperature = 0.0;
        let unseeded: Change = |_, work| {
            work.sampling.temperature = 0.0;
            work.sampling.seed = None;
            work.seed = 99;
        };
        assert_eq!(question(greedy), question(unseeded));
        let one: Change = |_, work| work.sampling.logit_bias = vec![(1, 0.5), (2, 1.0)];
        let other: Change = |_, work| work.sampling.logit_bias = vec![(2, 1.0), (1, 0.5)];
        assert_eq!(question(one), question(other));
        assert_eq!(question(|call, _| call.echo = true), question(|_, _| {}));
    }
}
