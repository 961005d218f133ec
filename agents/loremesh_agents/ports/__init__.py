"""What an agent needs from outside, as Protocols. Adapters and clients implement them; `bootstrap` joins the two."""
