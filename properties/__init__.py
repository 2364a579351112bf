"""The laws of attention, one file a family. Run them with `pytest properties`, or from anywhere with
`pytest --pyargs qkverify.properties --implementation mymodule:attention`."""
