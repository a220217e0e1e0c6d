"""How good a policy is: success with intervals, paired gains, the stage funnel, and a report that says how it was measured."""
