//! Embeddings: the cosine between both sides' vectors of a text, and whether both sides see the same
//! neighbourhoods.

use serde::Serialize;

use super::{Distribution, Quantiles, Reservoir, kendall, spearman};

/// Texts whose vectors are kept, on both sides, at most.
const KEPT_TEXTS: usize = 256;

/// Numbers of the vectors kept a side, at most: 2 MiB. Wider vectors than 1024 leave fewer texts.
const KEPT_NUMBERS: usize = 1 << 18;

/// Of a text's neighbours, so many nearest are compared.
const NEIGHBOURS: usize = 10;

/// Two models' vectors of the same texts. The models may have different dimensions; then there are no
/// cosines, but still neighbourhoods.
#[derive(Debug, Clone, Default)]
pub struct EmbeddingComparison {
    cosines: Distribution,
    kept: Option<Reservoir<[Vec<f32>; 2]>>,
    incomparable: u64,
}

/// What both sides' embeddings have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EmbeddingFigures {
    /// Cosines between both sides' vectors of a text; none where dimensions differ.
    pub cosine: Option<Quantiles>,
    /// Spearman's correlation of the similarities of all pairs of texts, of a sample of at most 256.
    pub spearman: Option<f64>,
    /// Kendall's, of the same.
    pub kendall: Option<f64>,
    /// Mean share of a text's 10 nearest neighbours (a quarter of them all, where there are less than
    /// 40) that both sides have in common.
    pub neighbour_overlap: Option<f64>,
    /// Texts in that sample.
    pub neighbourhood: usize,
    /// Texts of which a side's vector is all zero or not finite.
    pub incomparable: u64,
}

impl EmbeddingComparison {
    /// Takes both sides' vectors of a text in.
    pub fn observe(&mut self, reference: &[f32], candidate: &[f32]) {
        if !(is_direction(reference) && is_direction(candidate)) {
            self.incomparable += 1;
            return;
        }
        if let Some(cosine) = cosine(reference, candidate) {
            self.cosines.observe(cosine);
        }
        let widest = reference.len().max(candidate.len());
        self.kept
            .get_or_insert_with(|| {
                let texts = (KEPT_NUMBERS / widest).clamp(2, KEPT_TEXTS);
                Reservoir::new(texts, 0xe3bed)
            })
            .offer(|| [reference.to_vec(), candidate.to_vec()]);
    }

    /// Takes another comparison in.
    pub fn merge(&mut self, other: Self) {
        self.cosines.merge(other.cosines);
        self.incomparable += other.incomparable;
        match (&mut self.kept, other.kept) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (mine, theirs) => *mine = mine.take().or(theirs),
        }
    }

    /// The cosines seen, a uniform sample where there were more than 4096.
    pub fn cosines(&self) -> &[f64] {
        self.cosines.sample()
    }

    /// Similarities of every pair of the texts kept: the reference's, and the candidate's.
    pub fn similarities(&self) -> [Vec<f64>; 2] {
        let texts = self.kept.as_ref().map_or(&[][..], Reservoir::kept);
        [0, 1].map(|side| {
            let pairs = (0..texts.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
            pairs
                .map(|(i, j)| cosine(&texts[i][side], &texts[j][side]).unwrap_or(0.0))
                .collect()
        })
    }

    /// The mean cosine, or where there is none Spearman's correlation of the similarities; negative
    /// ones are 0.
    pub(super) fn agreement(&self) -> Option<f64> {
        let mean = self.cosines.mean().or_else(|| {
            let [reference, candidate] = self.similarities();
            spearman(&reference, &candidate)
        });
        mean.map(|mean| mean.clamp(0.0, 1.0))
    }

    /// What was seen so far.
    pub fn figures(&self) -> EmbeddingFigures {
        let [reference, candidate] = self.similarities();
        let texts = self.kept.as_ref().map_or(0, |kept| kept.kept().len());
        EmbeddingFigures {
            cosine: self.cosines.quantiles(),
            spearman: spearman(&reference, &candidate),
            kendall: kendall(&reference, &candidate),
            neighbour_overlap: neighbour_overlap(texts, &reference, &candidate),
            neighbourhood: texts,
            incomparable: self.incomparable,
        }
    }
}

/// `a·b / (|a||b|)`; `None` for vectors of different length or no direction.
pub fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    if a.len() != b.len() {
        return None;
    }
    let (mut both, mut left, mut right) = (0.0, 0.0, 0.0);
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (f64::from(x), f64::from(y));
        both += x * y;
        left += x * x;
        right += y * y;
    }
    let scale = left.sqrt() * right.sqrt();
    (scale > 0.0 && scale.is_finite()).then(|| (both / scale).clamp(-1.0, 1.0))
}

fn is_direction(vector: &[f32]) -> bool {
    vector.iter().all(|x| x.is_finite()) && vector.iter().any(|x| *x != 0.0)
}

/// Mean share of the nearest neighbours in common, from the similarities of pairs `(i, j < i)`.
fn neighbour_overlap(texts: usize, reference: &[f64], candidate: &[f64]) -> Option<f64> {
    let wanted = NEIGHBOURS.min(texts.saturating_sub(1).div_ceil(4));
    if wanted == 0 {
        return None;
    }
    let place = |i: usize, j: usize| {
        let (high, low) = (i.max(j), i.min(j));
        high * (high - 1) / 2 + low
    };
    let nearest = |of: usize, similarities: &[f64]| {
        let mut others: Vec<usize> = (0..texts).filter(|other| *other != of).collect();
        others.sort_by(|&x, &y| similarities[place(of, y)].total_cmp(&similarities[place(of, x)]));
        others.truncate(wanted);
        others
    };
    let shared: usize = (0..texts)
        .map(|of| {
            let theirs = nearest(of, candidate);
            let ours = nearest(of, reference);
            ours.iter().filter(|text| theirs.contains(text)).count()
        })
        .sum();
    Some(shared as f64 / (texts * wanted) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(seed: u32, width: usize) -> Vec<f32> {
        (0..width as u32)
            .map(|index| ((seed * 31 + index * 17) as f32).sin())
            .collect()
    }

    #[test]
    fn the_same_vectors_agree_wholly() {
        let mut comparison = EmbeddingComparison::default();
        for seed in 0..30 {
            comparison.observe(&vector(seed, 8), &vector(seed, 8));
        }
        let figures = comparison.figures();
        assert!((figures.cosine.unwrap().min - 1.0).abs() < 1e-12);
        assert_eq!(figures.spearman, Some(1.0));
        assert_eq!(figures.neighbour_overlap, Some(1.0));
        assert_eq!(comparison.agreement(), Some(1.0));
    }

    #[test]
    fn other_dimensions_leave_the_neighbourhoods_to_compare() {
        let mut comparison = EmbeddingComparison::default();
        for seed in 0..20 {
            let mut wider = vector(seed, 8);
            wider.extend([0.0; 4]);
            comparison.observe(&vector(seed, 8), &wider);
        }
        let figures = comparison.figures();
        assert_eq!(figures.cosine, None);
        assert_eq!(figures.spearman, Some(1.0));
        assert_eq!(comparison.agreement(), Some(1.0));
    }

    #[test]
    fn a_vector_without_direction_is_counted_and_spoils_nothing() {
        let mut comparison = EmbeddingComparison::default();
        comparison.observe(&[0.0, 0.0], &[1.0, 0.0]);
        comparison.observe(&[f32::NAN, 0.0], &[1.0, 0.0]);
        comparison.observe(&[1.0, 0.0], &[1.0, 0.0]);
        let figures = comparison.figures();
        assert_eq!(figures.incomparable, 2);
        assert_eq!(figures.cosine.unwrap().n, 1);
        assert_eq!((figures.spearman, figures.neighbour_overlap), (None, None));
    }

    #[test]
    fn vectors_kept_are_bounded() {
        let mut comparison = EmbeddingComparison::default();
        for seed in 0..300 {
            comparison.observe(&vector(seed, 4096), &vector(seed, 4096));
        }
        assert_eq!(comparison.figures().neighbourhood, 64);
    }
}
