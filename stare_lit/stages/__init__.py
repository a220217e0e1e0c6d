"""What a stage is (pure torch): predicates and specs declare it, the separator labels it, the calculator prices it."""
