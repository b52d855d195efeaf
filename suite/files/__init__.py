"""Every file that holds a table of counts: text, arrays, Matrix Market, AnnData, Parquet, and safe pickles."""
