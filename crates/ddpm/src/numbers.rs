//! Whole numbers on the command line.

use std::fmt::Display;
use std::str::FromStr;

/// For clap: a whole number of at least `least`.
pub fn at_least<T>(least: T) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + Display + Copy,
{
    move |text| match text.parse::<T>() {
        Ok(number) if number >= least => Ok(number),
        Err(_) if text.parse::<u128>().is_ok() => Err("the number is too large".to_string()),
        _ => Err(format!("expected a whole number of at least {least}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_and_words_are_refused() {
        let read = at_least(2_u32);
        assert_eq!(read("2"), Ok(2));
        for text in ["", "1", "-3", "two", "2.5", "0001"] {
            assert_eq!(read(text), Err("expected a whole number of at least 2".to_string()), "{text}");
        }
        assert_eq!(read("4294967296"), Err("the number is too large".to_string()));
    }
}
