use super::*;

#[test]
fn reasons_keep_their_order_and_numbers() {
    for (index, reason) in Reason::all().enumerate() {
        assert_eq!(reason as usize, index);
        assert_eq!(usize::from(reason.code()), index + 1);
        assert_eq!(Reason::from_code(reason.code()), Some(reason));
    }
}
