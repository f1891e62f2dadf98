"""NNNN_pre_what.py may run while the previous release still serves; NNNN_post_what.py only after it is gone."""
