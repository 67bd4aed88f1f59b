//! What a model wants of its files, tensor by tensor: names and shapes, derived from its spec
//! before a weight is read. The check of the header and the loading read the same plan, so they
//! cannot disagree.

/// One tensor by its whole name; shape outermost first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorPlan {
    pub name: String,
    pub shape: Vec<usize>,
}

impl TensorPlan {
    pub fn new(name: String, shape: &[usize]) -> Self {
        Self {
            name,
            shape: shape.to_vec(),
        }
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A linear layer of one or several weights side by side, with as many biases or none.
#[derive(Debug, Clone)]
pub(super) struct ProjectionPlan {
    pub weights: Vec<TensorPlan>,
    pub biases: Vec<TensorPlan>,
}

impl ProjectionPlan {
    /// All tensors, weights first.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorPlan> {
        self.weights.iter().chain(&self.biases)
    }
}
