"""Profiles to seconds, bytes and joules: one file per source of cost; no decisions are taken here."""
