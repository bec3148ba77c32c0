"""The world `small`: pretrained and small trained parts, run by the ordinary classes."""
