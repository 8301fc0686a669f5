
@ababababababababababababababababababababababababababababababababdelta"
encoder.0.query