//! The master's leases (L2, L5 to L7). Events: `renew <node> <life> <q> [<without address>]`, `confirmed <voter> <round>`,
//! `fenced <voter> <age>`, `nodes <node>:<life>[a][d]` (armed, dead), `voters <set> [<set>]`.

use ha::Mutant;

use crate::script::{GrantsTable, check, must_differ};

fn holds(table: &str) {
    check(GrantsTable::new(None), table);
}

fn caught(mutant: Mutant, table: &str) {
    holds(table);
    must_differ(GrantsTable::new(Some(mutant)), table, mutant);
}

const ROUNDS: &str = "
       0  voters 1,2,3         | fence 1,2,3
       0  nodes 1:4 2:5 3:6    |
      10  renew 2 5 1          | confirm 1
      11  renew 3 6 1          |
      12  confirmed 1 1        |
      13  confirmed 2 1        | grant 2:5 1; confirm 2
      14  confirmed 3 1        |
      15  confirmed 3 2        |
      16  confirmed 3 2        |
      17  confirmed 1 2        | grant 3:6 1
    ";

#[test]
fn a_lease_needs_a_round_that_began_after_it_was_asked_for() {
    caught(Mutant::GrantWithoutRound, ROUNDS);
    caught(Mutant::JoinsRoundInFlight, ROUNDS);
}

#[test]
fn before_office_nothing_is_granted() {
    caught(
        Mutant::GrantBeforeOffice,
        "
       0  voters 1             | fence 1
      10  renew 1 4 1          |
      11  tick                 |
      50  nodes 1:4            | confirm 1
      51  confirmed 1 1        | grant 1:4 1
    ",
    );
}

#[test]
fn a_round_that_is_not_confirmed_is_begun_anew_and_its_answers_are_late() {
    holds(
        "
       0  voters 1,2,3         | fence 1,2,3
       0  nodes 1:4 2:5 3:6    |
      10  renew 1 4 1          | confirm 1
      11  confirmed 1 1        |
     200  tick                 | fence 1,2,3
     210  tick                 | confirm 2
     211  confirmed 2 1        |
     212  confirmed 3 2        |
     213  confirmed 2 2        | grant 1:4 1
    ",
    );
}

#[test]
fn what_was_asked_for_too_long_ago_is_forgotten() {
    holds(
        "
       0  voters 1,2,3         | fence 1,2,3
       0  nodes 1:4 2:5 3:6    |
      10  renew 1 4 1          | confirm 1
     500  renew 1 4 6          | fence 1,2,3; confirm 2
    1010  tick                 | fence 1,2,3; confirm 3
    1020  confirmed 2 3        |
    1021  confirmed 3 3        | grant 1:4 6
    ",
    );
}

#[test]
fn in_a_joint_change_both_sets_have_to_confirm_and_to_be_fenced() {
    holds(
        "
       0  voters 1 1,2,3       | fence 1,2,3
       0  nodes 1:4 2:5 3:6    |
      10  renew 1 4 1          | confirm 1
      11  confirmed 2 1        |
      12  confirmed 3 1        |
      13  confirmed 1 1        | grant 1:4 1
      20  fenced 2 5           |
      21  fenced 3 5           |
     200  tick                 | fence 1
    ",
    );
}

#[test]
fn a_life_that_has_ended_is_told_and_one_that_is_not_known_yet_is_not() {
    holds(
        "
       0  voters 1             | fence 1
       0  nodes 1:4 2:5d 3:6   |
      10  renew 2 5 1          | confirm 1
      11  renew 2 4 2          |
      12  renew 3 7 1          |
      13  renew 4 1 1          |
      14  confirmed 1 1        | refuse 2 1, it is 5; confirm 2
      15  confirmed 1 2        | refuse 2 2, it is 5
    ",
    );
}

/// Node 3 falls silent. Its last lease is of the round that began at 310; the round that shows that this master is not the
/// one that is cut off begins after 310 + 1101.
const SILENCE: &str = "
       0  voters 1,2,3         | fence 1,2,3
       0  nodes 1:4a 2:5a 3:6a |
       1  fenced 1 5000        |
       2  fenced 2 0           |
     310  renew 3 6 1          | confirm 1
     311  confirmed 1 1        |
     312  confirmed 2 1        | grant 3:6 1
     900  renew 1 4 2          | confirm 2
     901  renew 2 5 2          |
     902  confirmed 1 2        |
     903  confirmed 2 2        | grant 1:4 2; confirm 3
     904  confirmed 1 3        |
     905  confirmed 2 3        | grant 2:5 2
    1411  tick                 |
    1412  tick                 | confirm 4
    1413  confirmed 1 4        |
    1414  confirmed 3 4        | condemn 3:6 after 1104 of 1101 by 1,3
    1415  renew 3 6 9          | confirm 5
    1416  confirmed 1 5        |
    1417  confirmed 2 5        |
    1420  pardoned 3 6         |
    1430  renew 3 6 10         | confirm 6
    1431  confirmed 1 6        |
    1432  confirmed 2 6        | grant 3:6 10
    1440  nodes 1:4a 2:5a 3:7a |
    1441  renew 3 6 11         | confirm 7
    1442  confirmed 1 7        |
    1443  confirmed 2 7        | refuse 3 11, it is 7
    ";

#[test]
fn who_is_silent_for_longer_than_a_lease_is_condemned_by_a_master_whose_rounds_are_confirmed() {
    caught(Mutant::CondemnUnproved, SILENCE);
    caught(Mutant::GrantToCondemned, SILENCE);
}

/// Node 3 confirmed the old master 400 ms before this one asked it: nobody can be declared dead before 410 − 400 + W.
const FENCE: &str = "
     100  voters 1,2,3         | fence 1,2,3
     100  nodes 1:4a 2:5a 3:6a |
     300  renew 1 4 1          | fence 1,2,3; confirm 1
     302  confirmed 1 1        |
     303  confirmed 3 1        | grant 1:4 1
     400  fenced 1 900         |
     410  fenced 3 400         |
    1100  renew 3 6 1          | confirm 2
    1101  renew 1 4 2          |
    1108  confirmed 1 2        |
    1109  confirmed 3 2        | grant 3:6 1; confirm 3
    1113  confirmed 1 3        |
    1114  confirmed 3 3        | grant 1:4 2; confirm 4
    1116  confirmed 1 4        |
    1117  confirmed 3 4        | condemn 2:5 after 1107 of 1101 of an older master by 1,3
    ";

#[test]
fn what_older_masters_granted_is_waited_out() {
    caught(Mutant::NoFenceWait, FENCE);
}

#[test]
fn without_the_answers_of_a_majority_nobody_is_condemned() {
    holds(
        "
       0  voters 1,2,3         | fence 1,2,3
       0  nodes 1:4a 2:5a 3:6a |
       1  fenced 1 5000        |
    5000  renew 1 4 1          | fence 2,3; confirm 1
    5001  confirmed 1 1        |
    5002  confirmed 3 1        | grant 1:4 1
    5003  fenced 3 0           |
    6200  tick                 | confirm 2
    6201  confirmed 1 2        |
    6202  renew 1 4 2          |
    6203  confirmed 3 2        | condemn 2:5 after 1200 of 1101 of an older master by 1,3; condemn 3:6 after 1200 of 1101 of \
         an older master by 1,3; confirm 3
    ",
    );
}

/// After a long election all leases have ended; guards that live have to find the new master first.
#[test]
fn a_new_master_waits_until_it_could_be_found() {
    holds(
        "
    9000  voters 1             | fence 1
    9000  nodes 1:4a 2:5a      |
    9001  fenced 1 8000        |
    9100  renew 1 4 1          | confirm 1
    9101  confirmed 1 1        | grant 1:4 1
    9299  tick                 |
    9300  tick                 | confirm 2
    ",
    );
}
