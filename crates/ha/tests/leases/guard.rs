//! The guard of node 1 (L1, L4, L8, L9). Events: `granted <q> <life> <term> <master> <runs>`, `over <q> <life> <term>`.

use ha::Mutant;

use crate::script::{GuardTable, check, must_differ};

fn holds(table: &str) {
    check(GuardTable::new(None), table);
}

fn caught(mutant: Mutant, table: &str) {
    holds(table);
    must_differ(GuardTable::new(Some(mutant)), table, mutant);
}

/// It counts from when it asked, not from when it is answered.
const A_LEASE: &str = "
       0  daemon 7             | drop-address; renew 1 as 7 to all
      40  granted 1 7 5 1      | lease 1000
     100  tick                 | renew 2 as 7 to 1
     200  tick                 | renew 3 as 7 to 1
     210  granted 3 7 5 1      | lease 1200
     220  granted 2 7 5 1      |
    1199  daemon 7             | renew 4 as 7 to all
    1200  tick                 | drop-address; lease 1200
    ";

#[test]
fn a_lease_counts_from_when_it_was_asked_for() {
    caught(Mutant::RenewedByAnswering, A_LEASE);
}

const A_SHORT_LOSS: &str = "
       0  daemon 7             | drop-address; renew 1 as 7 to all
       0  run 4                | stop 4
       0  run 9 unprotected    |
      10  granted 1 7 5 1 4    | lease 1000
     100  tick                 | renew 2 as 7 to 1
     110  granted 2 7 5 1 4    | lease 1100; continue 4
     900  tick                 | renew 3 as 7 to all
    1100  tick                 | stop 4; drop-address; lease 1100; renew 4 as 7 to all
    1150  granted 3 7 5 1 4    | lease 1900
    1160  granted 4 7 5 1 4    | lease 2100; continue 4
    ";

#[test]
fn a_short_loss_is_a_pause_and_what_goes_on_was_asked_for_afterwards() {
    caught(Mutant::ContinuedWithoutAsking, A_SHORT_LOSS);
}

#[test]
fn a_run_that_was_taken_over_meanwhile_is_ended() {
    holds(
        "
       0  daemon 7             | drop-address; renew 1 as 7 to all
      10  granted 1 7 5 1      | lease 1000
      20  run 4                |
      20  run 5                |
    1000  tick                 | stop 4,5; drop-address; lease 1000; renew 2 as 7 to all
    1050  granted 2 7 6 2 5    | drop-address; lease 2000; kill 4; continue 5
    1060  ended 4              |
    2000  tick                 | stop 5; drop-address; lease 2000; renew 3 as 7 to all without 6
    ",
    );
}

const REGISTERED_TOO_LATE: &str = "
       0  daemon 7             | drop-address; renew 1 as 7 to all
      10  granted 1 7 5 1      | lease 1000
     999  daemon 7             | renew 2 as 7 to all
    1000  tick                 | drop-address; lease 1000
    1001  run 4                | stop 4
    1002  run 5 unprotected    |
    1003  granted 2 7 5 1      | lease 1999
    1099  tick                 | renew 3 as 7 to 1
    1105  granted 3 7 5 1 4    | lease 2099; continue 4
    ";

#[test]
fn a_run_that_comes_after_the_lease_ended_waits_for_the_next() {
    caught(Mutant::RunSlipsIn, REGISTERED_TOO_LATE);
}

const PARKED: &str = "
       0  daemon 7             | drop-address; renew 1 as 7 to all
      10  granted 1 7 5 1      | lease 1000
      20  run 4                |
    1000  tick                 | stop 4; drop-address; lease 1000; renew 2 as 7 to all
    2000  daemon 7             | renew 3 as 7 to all
    4000  daemon 7             | renew 4 as 7 to all
    5999  daemon 7             | renew 5 as 7 to all
    6000  tick                 | kill 4
    6200  tick                 | renew 6 as 7 to all
    ";

#[test]
fn a_stopped_run_is_ended_when_no_lease_comes_back() {
    caught(Mutant::ContinuedOnTimeout, PARKED);
}

#[test]
fn a_run_may_lose_or_gain_protection() {
    holds(
        "
       0  daemon 7             | drop-address; renew 1 as 7 to all
       0  run 4 unprotected    |
       1  run 4                | stop 4
      50  run 4 unprotected    |
     100  tick                 | renew 2 as 7 to all
     110  granted 2 7 5 1 4    | lease 1100; continue 4
    1100  tick                 | drop-address; lease 1100; renew 3 as 7 to all
    ",
    );
}

#[test]
fn an_ended_life_ends_what_it_ran_unless_who_says_so_is_behind() {
    holds(
        "
       0  daemon 7             | drop-address; renew 1 as 7 to all
      10  granted 1 7 5 1      | lease 1000
      20  run 4                |
      30  run 5 unprotected    |
     100  tick                 | renew 2 as 7 to 1
     110  over 2 6 5           |
     120  over 2 7 4           |
     130  over 2 7 5           | kill 4; drop-address; lease 0
     200  tick                 | renew 3 as 7 to 1
     210  over 3 8 5           |
     220  granted 3 7 4 1 4    |
     230  daemon 8             | drop-address; renew 4 as 8 to all
     240  granted 3 7 5 1 4    |
     250  granted 4 8 5 1      | lease 1230
    ",
    );
}

#[test]
fn grants_of_deposed_masters_and_other_lives_do_not_count() {
    holds(
        "
       0  daemon 7             | drop-address; renew 1 as 7 to all
      10  granted 1 7 5 1      | lease 1000
     100  tick                 | renew 2 as 7 to 1
     110  granted 2 7 4 1      |
     120  granted 2 6 5 1      |
     130  granted 2 7 6 1      | lease 1100
     140  granted 9 7 6 1      |
    ",
    );
}

/// Once a term, also when the lease goes on.
#[test]
fn the_address_goes_when_another_node_is_master_and_the_guard_says_so() {
    holds(
        "
       0  daemon 7             | drop-address; renew 1 as 7 to all
      10  granted 1 7 5 1      | lease 1000
     100  tick                 | renew 2 as 7 to 1
     110  granted 2 7 6 2      | drop-address; lease 1100
     200  tick                 | renew 3 as 7 to 2 without 6
     210  granted 3 7 6 2      | lease 1200
     300  tick                 | renew 4 as 7 to 2 without 6
     310  granted 4 7 7 1      | lease 1300
     400  tick                 | renew 5 as 7 to 1 without 6
     410  granted 5 7 8 3      | drop-address; lease 1400
     500  tick                 | renew 6 as 7 to 3 without 8
    ",
    );
}

#[test]
fn the_master_is_looked_for_when_it_does_not_answer() {
    holds(
        "
       0  daemon 7             | drop-address; renew 1 as 7 to all
       5  not-master 1 2       | renew 2 as 7 to 2
      10  granted 2 7 5 2      | drop-address; lease 1005
      11  not-master 1 3       |
     100  tick                 | renew 3 as 7 to 2 without 5
     105  not-master 3 3       | renew 4 as 7 to 3 without 5
     106  not-master 4 2       |
     200  tick                 | renew 5 as 7 to 3 without 5
     300  tick                 | renew 6 as 7 to all without 5
     305  not-master 6 -       |
    ",
    );
}

#[test]
fn a_daemon_that_hangs_is_replaced_and_a_lease_ends_without_it() {
    holds(
        "
       0  tick                 |
    6000  tick                 | replace-daemon
    9000  tick                 |
   10000  daemon 7             | drop-address; renew 1 as 7 to all
   10001  granted 1 7 5 1      | lease 11000
   12900  tick                 | drop-address; lease 11000; renew 2 as 7 to all
   12901  granted 2 7 5 1      | lease 13900
   13000  tick                 | replace-daemon; renew 3 as 7 to 1
   13001  granted 3 7 5 1      | lease 14000
   14999  tick                 | drop-address; lease 14000; renew 4 as 7 to all
   15000  tick                 |
   15500  daemon 7             | renew 5 as 7 to all
   18500  tick                 | replace-daemon; renew 6 as 7 to all
    ",
    );
}

#[test]
fn outside_a_cluster_nothing_is_asked_for_and_what_is_stopped_stays() {
    holds(
        "
       0  daemon none          |
       0  run 4                |
      10  daemon 7             | drop-address; stop 4; renew 1 as 7 to all
      20  daemon none          |
   90000  daemon none          |
   90001  daemon 0             | drop-address; kill 4
    ",
    );
}
