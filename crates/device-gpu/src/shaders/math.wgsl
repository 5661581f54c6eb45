// Functions that processors approximate in ways of their own, written out, so that every adapter
// has the same error, which is known.

// e to the x, within 2 units in the last place; 0 below the smallest normal number.
fn exp_of(x: f32) -> f32 {
    if x < -87.0 {
        return 0.0;
    }
    let n = min(round(x * 1.44269504), 128.0);
    var r = fma(n, -0.693359375, x);
    r = fma(n, 2.12194440e-4, r);
    var p = 1.38888889e-3;
    p = fma(p, r, 8.33333333e-3);
    p = fma(p, r, 4.16666667e-2);
    p = fma(p, r, 1.66666667e-1);
    p = fma(p, r, 0.5);
    p = fma(p, r, 1.0);
    p = fma(p, r, 1.0);
    return p * bitcast<f32>(u32(i32(n) + 127) << 23u);
}

// The hyperbolic tangent, within 1e-7 of 1.
fn tanh_of(x: f32) -> f32 {
    if abs(x) > 10.0 {
        return sign(x);
    }
    let e = exp_of(2.0 * x);
    return (e - 1.0) / (e + 1.0);
}

// The error function, within 2e-7 of 1 (Abramowitz and Stegun, 7.1.26).
fn erf_of(x: f32) -> f32 {
    if abs(x) > 6.0 {
        return sign(x);
    }
    let t = 1.0 / fma(0.3275911, abs(x), 1.0);
    var p = 1.061405429;
    p = fma(p, t, -1.453152027);
    p = fma(p, t, 1.421413741);
    p = fma(p, t, -0.284496736);
    p = fma(p, t, 0.254829592);
    let y = 1.0 - p * t * exp_of(-x * x);
    return select(y, -y, x < 0.0);
}

// Whether x is a number and finite.
fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

// a / b, rounded to nearest: adapters may be a few units off. Both are positive and normal, and so
// is the quotient.
fn divide(a: f32, b: f32) -> f32 {
    let x = bitcast<u32>(a);
    let y = bitcast<u32>(b);
    var exponent = i32(x >> 23u) - i32(y >> 23u) + 127;
    var rest = (x & 0x7fffffu) | 0x800000u;
    let divisor = (y & 0x7fffffu) | 0x800000u;
    if rest < divisor {
        rest <<= 1u;
        exponent -= 1;
    }
    var quotient = 0u;
    for (var i = 0u; i < 24u; i++) {
        quotient <<= 1u;
        if rest >= divisor {
            rest -= divisor;
            quotient |= 1u;
        }
        rest <<= 1u;
    }
    if rest > divisor || (rest == divisor && (quotient & 1u) == 1u) {
        quotient += 1u;
    }
    // A quotient of 2^24 carries into the exponent.
    return bitcast<f32>((u32(exponent - 1) << 23u) + quotient);
}

// The nearest bf16, ties to even, as its 16 bits; magnitudes below 2^-50 are 0.
fn bf16_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if !is_finite(x) {
        return select(bits >> 16u, 0x7fc0u, (bits & 0x7fffffu) != 0u);
    }
    if (bits & 0x7fffffffu) < 0x26800000u {
        return 0u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

// The nearest IEEE half, ties to even, as its 16 bits.
fn half_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let m = bits & 0x7fffffffu;
    if m > 0x7f800000u {
        return sign | 0x7e00u;
    }
    if m >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    if m < 0x38800000u {
        // Steps of 2^-24, of which there are fewer than 1025.
        let shift = min(126u - (m >> 23u), 31u);
        let mantissa = (m & 0x7fffffu) | 0x800000u;
        let whole = mantissa >> shift;
        let rest = mantissa & ((1u << shift) - 1u);
        let half = 1u << (shift - 1u);
        let up = rest > half || (rest == half && (whole & 1u) == 1u);
        return sign | (whole + select(0u, 1u, up));
    }
    return sign | ((m - 0x38000000u + 0xfffu + ((m >> 13u) & 1u)) >> 13u);
}
