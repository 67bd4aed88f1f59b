//! How a sound input is damaged: bits, lengths, counts, cuts, and pieces that come twice or a thousand
//! times.

use std::fmt::Write as _;

/// `SplitMix64`.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Values that counts and lengths are wrong with.
const LIES: [u64; 12] = [
    0,
    1,
    31,
    255,
    65_537,
    1 << 24,
    1 << 31,
    u32::MAX as u64,
    1 << 40,
    1 << 62,
    i64::MIN as u64,
    u64::MAX,
];

/// Damages an input whose first `header` bytes tell of the rest; says how.
pub fn mutate(input: &mut Vec<u8>, header: usize, random: &mut Random) -> String {
    if input.is_empty() {
        return "nothing, as there is nothing".to_owned();
    }
    let header = header.clamp(1, input.len());
    let lie = LIES[random.below(LIES.len())];
    match random.below(10) {
        0 => {
            let mut flipped = String::new();
            for _ in 0..=random.below(4) {
                let (byte, bit) = (random.below(header), random.below(8));
                input[byte] ^= 1 << bit;
                let _ = write!(flipped, " {byte}.{bit}");
            }
            format!("bits of the header flipped:{flipped}")
        }
        1 => {
            let byte = random.below(input.len());
            input[byte] ^= 1 << random.below(8);
            format!("a bit of byte {byte} flipped")
        }
        2 => {
            let len = random.below(input.len());
            input.truncate(len);
            format!("cut to {len}")
        }
        3 => overwrite(input, header, &lie.to_le_bytes(), random),
        4 => overwrite(input, header, &(lie as u32).to_le_bytes(), random),
        5 => lie_about_a_number(input, header, lie, random),
        6 => {
            let len = 1 + random.below(64).min(header / 4);
            let (from, to) = (random.below(header - len), random.below(header - len));
            input.copy_within(from..from + len, to);
            format!("{len} bytes of {from} at {to} again")
        }
        7 => {
            let at = random.below(header);
            let zeroed = random.below(64).min(header - at);
            input[at..at + zeroed].fill(0);
            format!("{zeroed} zeros at {at}")
        }
        8 => {
            let (at, byte) = (random.below(header), random.next() as u8);
            input.insert(at, byte);
            format!("{byte} put in at {at}")
        }
        _ => repeat_a_piece(input, header, random),
    }
}

fn overwrite(input: &mut [u8], header: usize, lie: &[u8], random: &mut Random) -> String {
    let at = random.below(header);
    let len = lie.len().min(input.len() - at);
    input[at..at + len].copy_from_slice(&lie[..len]);
    format!("{lie:?} at {at}")
}

/// Replaces a run of digits (shapes and offsets of safetensors are text); in a GGUF file one of the
/// counts at its head.
fn lie_about_a_number(input: &mut [u8], header: usize, lie: u64, random: &mut Random) -> String {
    let start = random.below(header);
    let digits = |byte: &u8| byte.is_ascii_digit();
    if input.starts_with(b"GGUF") && input.len() >= 24 {
        let at = [8, 16][random.below(2)];
        input[at..at + 8].copy_from_slice(&lie.to_le_bytes());
        return format!("{lie} as the count at {at}");
    }
    let Some(first) = input[start..header].iter().position(digits) else {
        return format!("nothing, as there is no number behind {start}");
    };
    let at = start + first;
    let len = input[at..header]
        .iter()
        .take_while(|byte| digits(byte))
        .count();
    for (place, byte) in input[at..at + len].iter_mut().enumerate() {
        *byte = b'0' + (lie.wrapping_add(place as u64 * 7) % 10) as u8;
    }
    format!("another number of {len} digits at {at}")
}

/// Brackets that never close, names of a megabyte.
fn repeat_a_piece(input: &mut Vec<u8>, header: usize, random: &mut Random) -> String {
    let from = random.below(header);
    let len = 1 + random.below(8).min(header - from - 1);
    let times = [2, 16, 300, 5000][random.below(4)];
    let piece = input[from..from + len].repeat(times);
    input.splice(from..from, piece);
    format!("{len} bytes of {from} there {times} times more")
}
