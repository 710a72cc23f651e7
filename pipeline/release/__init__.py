"""What a release is made of: its files and their digests, proof, provenance, card, report, signature.

contents     a folder of artifacts          -> the forms, records and proof that go into a release
measures     forms and test images          -> what the report shows image by image
provenance   the records                    -> an in-toto statement of who made it from what
pages        all of these                   -> MODEL_CARD.md and report.html (charts draws)
triton       the forms                      -> a model repository of Triton Inference Server
files        any of these, as bytes         -> a folder with SHA256SUMS and one archive, and the check of both
signing      a folder                       -> an OpenSSF model signature, and its check
inspection   a folder                       -> whether all of that holds: what a receiver asks first
"""
