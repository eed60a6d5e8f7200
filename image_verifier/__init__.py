"""The admission webhook that lets only signed images run: cosign signatures, checked against given public keys."""
