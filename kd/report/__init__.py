"""Tables and pictures, made from result records only."""
