//! Images from outside: a path, an address, base64, bytes or pixels become a decoded [`Picture`], within limits.
